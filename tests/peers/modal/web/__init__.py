"""HTTP: blobs, blocks of Volumes, Servers, orders."""
