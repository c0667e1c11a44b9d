"""One module per figure: frames in, a matplotlib Figure out. `style`, `looks` and `draw` hold what they share."""
