"""The keys of a deployment file: how each is spelled, what it holds, and which published ones are not used.

This is the one table that the reader, its messages and the JSON Schema come from. Published keys keep their spelling.
A published key is *ignored*, with a notice, where serving without it gives the same answers.
"""

from __future__ import annotations

from llama_deploy.apiserver.access_keys import ACCESS, ORIGIN
from llama_deploy.apiserver.limits import LIMITS
from llama_deploy.apiserver.queue_keys import MESSAGE_QUEUE
from llama_deploy.apiserver.rate_keys import RATE_KEYS
from llama_deploy.apiserver.reference_keys import REFERENCE
from llama_deploy.apiserver.schedule_keys import RETRY_KEYS, SCHEDULE_KEYS
from llama_deploy.apiserver.shapes import (
    Choice,
    Free,
    Key,
    ListOf,
    Number,
    Record,
    Scalar,
    Table,
    Text,
    TextOrRecord,
)
from llama_deploy.apiserver.source_keys import PYTHON_DEPENDENCIES, SOURCE_KEYS
from llama_deploy.apiserver.specs import CONTROL_PLANE
from llama_deploy.apiserver.ui_keys import UI_KEYS
from llama_deploy.types.limits import RUNNING_MAX_MOST

IMPORT_PATH = Text(
    r"[^:\s][^:]*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", "an import path (`module:variable` or `folder/file.py:variable`)"
)
PORT = Number(integer=True, minimum=0, maximum=65535)
NAME_PATTERN = r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}"
_NAME_WORDS = "1 to 100 letters, digits, `_`, `-` or `.`"
_OFF = ("false", "False", "FALSE", "no", "No", "off", "Off")

_HOUSEKEEPING = "the store and the queue are part of this program"
_CONNECTS = "a service connects to the control plane and listens nowhere"

CONTROL_PLANE_KEYS = Record(
    {
        "host": Key(shape=Text(), doc="Address to listen on."),
        "port": Key(shape=PORT, doc="Port to listen on; 0 means any free one."),
        "shared": Key(
            shape=Choice(("true", "false")),
            doc="Other control planes share the store, a PostgreSQL database: each leads its part of the sessions.",
        ),
        "public-url": Key(
            shape=Text(), doc="Where services and the other control planes reach this one, if not where it listens."
        ),
        "internal-host": Key(shape=Text(), doc="Published key.", ignored="there is one address only"),
        "internal-port": Key(shape=PORT, doc="Published key.", ignored="there is one address only"),
        "step-interval": Key(shape=Number(minimum=0), doc="Published key.", ignored="nothing polls here"),
        "running": Key(shape=Free(), doc="Published key.", ignored="it runs when it is started"),
        "services-store-key": Key(shape=Text(), doc="Published key.", ignored=_HOUSEKEEPING),
        "tasks-store-key": Key(shape=Text(), doc="Published key.", ignored=_HOUSEKEEPING),
        "session-store-key": Key(shape=Text(), doc="Published key.", ignored=_HOUSEKEEPING),
        "topic-namespace": Key(shape=Text(), doc="Published key.", ignored=_HOUSEKEEPING),
        "cors-origins": Key(shape=ListOf(ORIGIN), doc="The published word for `cors-origins` of `access`."),
        "state-store-uri": Key(shape=Text(), doc="The published word for `store`."),
        "use-tls": Key(
            shape=Free(),
            doc="Published key.",
            ignored="it said how clients reach a proxy in front; to speak TLS here, see `tls` of `access`",
            harmless=_OFF,
        ),
    },
    "`control-plane`",
    underscores=True,
)

ORCHESTRATOR = TextOrRecord(
    Text(expected="an orchestrator's name or import path"),
    Record(
        {
            "name": Key(shape=Text(), doc="An orchestrator that is built in."),
            "import-path": Key(shape=IMPORT_PATH, doc="A class or an object of your own: `module:variable`."),
            "parameters": Key(
                shape=Table(Free(), "parameter", r"[A-Za-z_][\w\-]*", "a name of Python"),
                doc="Arguments of its constructor.",
            ),
        },
        "`orchestrator`",
    ),
)

_PLACES = Number(integer=True, minimum=1, maximum=RUNNING_MAX_MOST)

SERVICE_LIMIT_KEYS = Record(
    {
        "running-max": Key(shape=_PLACES, doc="Steps that run at once, over all instances."),
        "running-max-per-session": Key(shape=_PLACES, doc="Steps of one session that run at once."),
        "running-max-per-key": Key(shape=_PLACES, doc="Steps of one key that run at once."),
        "rate": Key(shape=RATE_KEYS, doc="How often attempts may begin."),
    },
    "`limits`",
)

SERVICE_KEYS = Record(
    {
        "name": Key(shape=Text(), doc="A title for people; the service is called by its key."),
        "import-path": Key(shape=IMPORT_PATH, doc="Where the service is: `module:variable` or `file.py:variable`."),
        "path": Key(shape=Text(), doc="A folder put on `sys.path`; with a colon in it, the old word for import-path."),
        "source": Key(shape=SOURCE_KEYS, doc="The folder that holds the code, if it is not the one of this file."),
        "description": Key(shape=Text(), doc="What the service does."),
        "concurrency": Key(shape=Number(integer=True, minimum=1), doc="Steps that one instance works on at once."),
        "run-timeout-s": Key(shape=Number(above=0), doc="Seconds that one attempt of a step may take."),
        "retry": Key(shape=RETRY_KEYS, doc="How failed steps are tried again."),
        "memory": Key(
            shape=Choice(("none", "session", "task")), doc="What its steps remember together: nothing, or of what."
        ),
        "limits": Key(shape=SERVICE_LIMIT_KEYS, doc="How much of it runs at once over all instances, and how often."),
        "replicas": Key(shape=Number(integer=True, minimum=1, maximum=100), doc="Processes that run this service."),
        "process-memory-mb-max": Key(
            shape=Number(integer=True, minimum=128, maximum=1_048_576),
            doc="Memory of one process in MiB; the kernel refuses more. Where deployments run on an API server.",
        ),
        "env": Key(
            shape=Table(
                TextOrRecord(Scalar(), REFERENCE), "variable", r"[A-Za-z_]\w*", "a name of letters, digits and `_`"
            ),
            doc="Variables of the service's process; `${NAME}` and `${NAME:-default}` stand for those of its starter.",
        ),
        "env-files": Key(shape=ListOf(Text()), doc="Files of environment variables, relative to this file."),
        "host": Key(shape=Text(), doc="Published key.", ignored=_CONNECTS),
        "port": Key(shape=PORT, doc="Published key.", ignored=_CONNECTS),
        "python-dependencies": Key(
            shape=PYTHON_DEPENDENCIES, doc="Packages of an environment of the service's own, on an API server."
        ),
        "ui": Key(
            shape=Free(), doc="Published key.", ignored="a page belongs to the deployment: `ui` beside `services`"
        ),
    },
    "a service",
)

SERVICES = Table(
    SERVICE_KEYS, "service name", NAME_PATTERN, _NAME_WORDS, reserved=(CONTROL_PLANE, "control_plane"), needs_one=True
)

WEBHOOK_KEYS = Record(
    {
        "url": Key(
            shape=TextOrRecord(Text(r"https?://\S+", "a URL (`https://host/path`)"), REFERENCE),
            doc="Told of the end of every task that names no webhook of its own.",
        ),
        "secret": Key(shape=Text(), doc="The name of the secret that requests to `url` are signed with."),
        "hosts": Key(shape=ListOf(Text()), doc="Hosts, patterns and networks that may be called; any, if left out."),
        "secrets": Key(
            shape=Table(REFERENCE, "secret's name", NAME_PATTERN, _NAME_WORDS),
            doc="Where each secret is: `env: VARIABLE` or `file: PATH`.",
        ),
    },
    "`webhooks`",
)

FILE_KEYS = Record(
    {
        "name": Key(shape=Text(NAME_PATTERN, f"a name of {_NAME_WORDS}"), doc="The deployment's name.", required=True),
        "control-plane": Key(shape=CONTROL_PLANE_KEYS, doc="Where the control plane listens."),
        "message-queue": Key(
            shape=MESSAGE_QUEUE, doc="What carries the messages, or its URL; the built-in queue if left out."
        ),
        "default-service": Key(shape=Text(), doc="The service of a task that names none."),
        "orchestrator": Key(shape=ORCHESTRATOR, doc="What decides where messages go: a name or an import path."),
        "orchestrators": Key(
            shape=Table(ORCHESTRATOR, "orchestrator", r"[A-Za-z][\w\-]*(@\d+)?", "a name, or `name@version`"),
            doc="Further ones by name, for tasks that ask for one; `name@1` is an earlier version of `name`.",
        ),
        "limits": Key(shape=LIMITS, doc="Deadlines, limits and pauses of the control plane, where not the default."),
        "redact": Key(
            shape=ListOf(Text()),
            doc="Patterns of keys whose values people do not get to see: `*password*`, `api_key`.",
        ),
        "encryption-key-file": Key(
            shape=Text(), doc="A file of keys, the newest first, with which the content of the store is encrypted."
        ),
        "store": Key(
            shape=Text(),
            doc="Where the data lives: a path, `:memory:`, or `postgresql://…`. By default `.llama_deploy/`.",
        ),
        "services": Key(shape=SERVICES, doc="The services by name.", required=True),
        "schedules": Key(
            shape=Table(SCHEDULE_KEYS, "schedule's name", NAME_PATTERN, _NAME_WORDS),
            doc="Tasks that are submitted at times, by name.",
        ),
        "access": Key(shape=ACCESS, doc="Who is let in: tokens, TLS, origins of pages, the audit log."),
        "webhooks": Key(shape=WEBHOOK_KEYS, doc="Who is told over HTTP of the end of tasks, and who may be."),
        "ui": Key(shape=UI_KEYS, doc="A page for people, served by an API server below /deployments/NAME/ui."),
    },
    "a deployment file",
)
