"""Feedback: taken in, stored, batched, turned into DistillJobs, and followed into versions."""
