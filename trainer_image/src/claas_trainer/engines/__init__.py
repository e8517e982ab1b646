"""Where a step is computed. `base` is the one interface, `registry` maps names to engines."""
