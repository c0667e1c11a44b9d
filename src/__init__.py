"""margincall: train preference losses and watch whether they collapse."""
