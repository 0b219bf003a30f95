"""What runs on our side of a benchmark: the services, the orchestrators of the longer jobs, and the client."""
