"""The gateway: the HTTP front of every adapter. It passes inference on, records rollouts, and turns feedback into
DistillJobs."""
