"""Teachers: the policies that the student learns from."""
