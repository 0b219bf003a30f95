"""Whether what runs in this container is ready, for Docker's HEALTHCHECK and for probes that run a command.

`llamactl serve --ready-file` writes a file once all is ready and removes it as soon as it begins to stop. A control
plane is asked as well (`/readyz`: tasks are taken); a service listens nowhere, so its process has to be alive. Exits
with 0 or 1, and says why in one line. Plain Python, so that it starts quickly.
"""

import json
import os
import ssl
import sys
import urllib.error
import urllib.request

READY_FILE = os.environ.get("LLAMA_DEPLOY_READY_FILE", "/tmp/ready.json")  # noqa: S108 - a container's own
TIMEOUT_S = 4.0


def main() -> str:
    """Return why it is not ready, or nothing."""
    try:
        with open(READY_FILE, encoding="utf-8") as file:
            said = json.load(file)
    except FileNotFoundError:
        return f"{READY_FILE} is not there: it starts or stops, or runs without --ready-file"
    try:
        os.kill(said["pid"], 0)
    except ProcessLookupError:
        return f"process {said['pid']} has died and left {READY_FILE}"
    if "store" not in said:
        return ""
    try:
        context = _own_certificate() if said["url"].startswith("https:") else None
        asked = f"{said['url']}/readyz"
        with urllib.request.urlopen(asked, timeout=TIMEOUT_S, context=context):  # noqa: S310 - its own address
            return ""
    except (OSError, urllib.error.HTTPError) as error:
        return f"{said['url']}/readyz: {error}"


def _own_certificate() -> ssl.SSLContext:
    """It speaks to itself, so it asks for no proof; it shows a certificate where one is wanted of clients."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if certificate := os.environ.get("LLAMA_DEPLOY_CLIENT_CERTIFICATE_FILE"):
        context.load_cert_chain(certificate, os.environ.get("LLAMA_DEPLOY_CLIENT_KEY_FILE"))
    return context


if __name__ == "__main__":
    if why := main():
        print(why)
        sys.exit(1)
