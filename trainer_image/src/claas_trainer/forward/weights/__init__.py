"""Where base weights come from, and the one layout that the step computes on. Needs torch alone."""
