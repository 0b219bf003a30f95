"""The key `message-queue` of a deployment file: its spelling, and the carrier that it means.

Keys of the published system keep their spelling. Where the queue is the one that is built in, all keys but `type` are
read without effect, and a notice says so.
"""

from __future__ import annotations

import yaml

from llama_deploy.apiserver.queue_spec import ALIASES, MessageQueueSpec
from llama_deploy.apiserver.reference_keys import REFERENCE, text_or_reference
from llama_deploy.apiserver.shapes import Choice, Free, Key, Number, Record, Section, Text, TextOrRecord
from llama_deploy.apiserver.yaml_source import Findings
from llama_deploy.message_queues.opening import CARRIERS

_BUILT_IN = "the queue that is built in carries the messages; it has no address and no login"
_DRIVER = "the carrier sees to it"
_HINT = "there are " + ", ".join(CARRIERS) + "; or leave `message-queue` out"
_VALUE = TextOrRecord(Text(), REFERENCE)
_TLS = ("secure", "ssl", "use-ssl")
_TRUE = ("true", "True", "TRUE", "yes", "on")
_UNUSED = ("internal-host", "internal-port", "exclusive-mode", "exchange-name", "client-kwargs", "raise-exceptions")

MESSAGE_QUEUE_KEYS = Record(
    {
        "type": Key(
            shape=Choice(("simple", *CARRIERS, *ALIASES), {"solace": _HINT}),
            doc="Which queue carries the messages; by default what `url` begins with.",
        ),
        "url": Key(shape=_VALUE, doc="Where the broker is: `scheme://user:password@host:port/path`."),
        "host": Key(shape=Text(), doc="The broker's host, where there is no `url`."),
        "port": Key(
            shape=Number(integer=True, minimum=0, maximum=65535), doc="The broker's port, where there is no `url`."
        ),
        "db": Key(shape=Number(integer=True, minimum=0), doc="Redis: the database, where there is no `url`."),
        "vhost": Key(shape=Text(), doc="RabbitMQ: the virtual host, where there is no `url`."),
        "username": Key(shape=_VALUE, doc="In the place of the one in `url`."),
        "password": Key(shape=_VALUE, doc="In the place of the one in `url`."),
        **{
            name: Key(shape=Choice((*_TRUE, "false", "False", "FALSE", "no", "off")), doc="Whether TLS is spoken.")
            for name in _TLS
        },
        "ca-file": Key(shape=Text(), doc="Certificates of the authorities that are trusted; TLS is spoken."),
        "certificate-file": Key(shape=Text(), doc="The certificate that the broker is shown; TLS is spoken."),
        "key-file": Key(shape=Text(), doc="The key of that certificate, where it has a file of its own."),
        "namespace": Key(
            shape=Text(r"[A-Za-z0-9_.\-]{1,60}", "1 to 60 letters, digits, `_`, `-` or `.`"),
            doc="What names at the broker begin with; by default an identity that the store keeps.",
        ),
        "aws-region": Key(shape=Text(), doc="SQS: the region, where there is no `url`."),
        "aws-access-key-id": Key(shape=_VALUE, doc="SQS: another word for `username`."),
        "aws-secret-access-key": Key(shape=_VALUE, doc="SQS: another word for `password`."),
        **{name: Key(shape=Free(), doc="Published key.", ignored=_DRIVER) for name in _UNUSED},
    },
    "`message-queue`",
    underscores=True,
)

MESSAGE_QUEUE = TextOrRecord(Text(r"\S+://\S+|simple", "a URL (`redis://host:port`)"), MESSAGE_QUEUE_KEYS)


def _key_node(section: Section, name: str) -> yaml.Node:
    """Where a key of a section stands."""
    found: yaml.Node = next(key for key, _ in section.node.value if key.value.replace("_", "-") == name)
    return found


def message_queue_of(given: str | Section | None, findings: Findings) -> MessageQueueSpec:
    """The message queue that the file means."""
    if given is None:
        return MessageQueueSpec()
    if isinstance(given, str):
        return MessageQueueSpec(type="simple") if given == "simple" else MessageQueueSpec(url=given)
    kind = given["type"]
    if kind == "simple":
        for name in given.given():
            if name != "type" and name not in _UNUSED:
                key = _key_node(given, name)
                findings.notice(key, f"`{key.value}` is not used: {_BUILT_IN}")
        return MessageQueueSpec(type="simple")
    if not {"type", "url"} & given.nodes.keys():
        findings.problem(given.node, "`message-queue` needs a `type` or a `url`")
    path = given["vhost"] or ("" if given["db"] is None else str(given["db"]))
    return MessageQueueSpec(
        type=kind,
        url=text_or_reference(given["url"], findings),
        host=given["host"] or given["aws-region"],
        port=given["port"],
        path=path.removeprefix("/"),
        secure=any(given[name] in _TRUE for name in _TLS),
        username=text_or_reference(given["username"] or given["aws-access-key-id"], findings),
        password=text_or_reference(given["password"] or given["aws-secret-access-key"], findings),
        namespace=given["namespace"],
        ca_file=given["ca-file"],
        certificate_file=given["certificate-file"],
        key_file=given["key-file"],
    )
