"""One module per figure: frames in, a matplotlib Figure out. `sheet`, `style`, `looks`, `draw` hold what they share."""
