"""One module per figure: frames in, a matplotlib Figure out. `style` holds what they share."""
