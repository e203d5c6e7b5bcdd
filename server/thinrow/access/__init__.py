"""Access to a service: identity, quotas, scheduling, deadlines, drain, errors, TLS."""
