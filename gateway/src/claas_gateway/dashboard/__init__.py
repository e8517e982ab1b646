"""The dashboard below /v1/dashboard: server-rendered pages from the store."""
