"""HTTP: the routes, what they read, and the port they are on."""
