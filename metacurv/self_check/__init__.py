"""What ``python -m metacurv`` prints: what is installed, and whether it computes what it should."""
