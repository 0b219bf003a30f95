"""Who is let in to a control plane's HTTP server: tokens, scopes of routes, origins, rates, the audit log, TLS.

`Guard` stands before the application that listens on a socket. A client in the control plane's own process does not
pass it: whoever runs code here may do everything anyway.
"""
