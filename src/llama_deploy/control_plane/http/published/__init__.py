"""The HTTP routes of the published `llama_deploy`, for clients that are installed already: thin over the control plane.

`core_routes` are those of its control plane, `server_routes` those of its API server; both are served beside `/v1`.
Nothing but `app.py` knows of this package, so that it can be deleted in one go. They are left out of the OpenAPI
document: new programs use `/v1`.
"""
