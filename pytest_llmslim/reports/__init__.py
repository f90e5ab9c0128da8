"""Reports: records in, text out. A report formats; it never computes."""
