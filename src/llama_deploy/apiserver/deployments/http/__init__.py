"""The API server over HTTP: deployments, and the way through it to each one's control plane."""
