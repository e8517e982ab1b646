"""Who the student learns from: the teacher's prompt, and the teacher's weights."""
