"""What the peer knows: deployed apps, calls, Volumes and blobs."""
