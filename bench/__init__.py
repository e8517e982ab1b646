"""Measurements that anyone can repeat. They need torch alone, and download nothing."""
