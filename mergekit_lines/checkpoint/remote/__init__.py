"""Models on the Hub: headers, failures, downloads."""
