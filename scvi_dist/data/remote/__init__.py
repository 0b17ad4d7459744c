"""Objects behind URLs: requests, retries, and blocks kept on a local disk."""
