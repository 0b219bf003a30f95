"""The published configuration classes: names, defaults and environment variables as programs know them.

What has no meaning here is taken and left alone (`step_interval`: nothing polls; the broker of a queue: messages are
carried within the control plane). They configure nothing by themselves; `running` and the clients read them.
"""

from __future__ import annotations

from pydantic_settings import BaseSettings, SettingsConfigDict


class ControlPlaneConfig(BaseSettings):
    """Where the control plane listens, and where it keeps what it records. Variables: `CONTROL_PLANE_*`."""

    model_config = SettingsConfigDict(env_prefix="CONTROL_PLANE_", extra="ignore")

    services_store_key: str = "services"
    tasks_store_key: str = "tasks"
    session_store_key: str = "sessions"
    step_interval: float = 0.1
    host: str = "127.0.0.1"
    port: int | None = 8000
    internal_host: str | None = None
    internal_port: int | None = None
    running: bool = True
    cors_origins: list[str] | None = None
    """Origins whose pages may use it from a browser."""
    topic_namespace: str = "llama_deploy"
    """Also the name of the deployment, and so of the file in which it is recorded."""
    state_store_uri: str | None = None
    """A path, `:memory:`, or `postgresql://...`; `.llama_deploy/<topic_namespace>.db` where it is not given."""
    use_tls: bool = False
    """Whether clients reach it through something that speaks TLS."""
    allow_remote: bool = False
    """Listen beyond loopback without asking for tokens."""
    access_file: str | None = None
    """Who is let in: a file with what stands under `access` in a deployment file (tokens, TLS, the audit log)."""

    @property
    def url(self) -> str:
        """Where clients reach it."""
        return _url(self)


class WorkflowServiceConfig(BaseSettings):
    """How a workflow is served. The service needs no address: it connects to the control plane by itself."""

    model_config = SettingsConfigDict(extra="ignore")

    host: str
    port: int | None = None
    internal_host: str | None = None
    internal_port: int | None = None
    service_name: str
    description: str = "A service that wraps a llama-index workflow."
    running: bool = True
    step_interval: float = 0.1
    max_concurrent_tasks: int = 8
    raise_exceptions: bool = False
    use_tls: bool = False

    @property
    def url(self) -> str:
        """What the address comes to; nothing listens there."""
        return _url(self)


class SimpleMessageQueueConfig(BaseSettings):
    """The queue within the control plane; its address is not used. Variables: `SIMPLE_MESSAGE_QUEUE_*`."""

    model_config = SettingsConfigDict(env_prefix="SIMPLE_MESSAGE_QUEUE_", extra="ignore")

    host: str = "127.0.0.1"
    port: int | None = 8001
    internal_host: str | None = None
    internal_port: int | None = None
    client_kwargs: dict[str, object] = {}
    raise_exceptions: bool = False
    use_ssl: bool = False


class RedisMessageQueueConfig(BaseSettings):
    """A Redis server, which is not needed here. Variables: `REDIS_*`."""

    model_config = SettingsConfigDict(env_prefix="REDIS_", extra="ignore")

    url: str = "redis://localhost:6379"
    host: str | None = None
    port: int | None = None
    db: int | None = None
    username: str | None = None
    password: str | None = None
    ssl: bool | None = None
    exclusive_mode: bool = False


class RabbitMQMessageQueueConfig(BaseSettings):
    """A RabbitMQ server, which is not needed here. Variables: `RABBITMQ_*`."""

    model_config = SettingsConfigDict(env_prefix="RABBITMQ_", extra="ignore")

    url: str = "amqp://guest:guest@localhost/"
    exchange_name: str = "llama-deploy"
    username: str | None = None
    password: str | None = None
    host: str | None = None
    port: int | None = None
    vhost: str = ""
    secure: bool | None = None


class KafkaMessageQueueConfig(BaseSettings):
    """A Kafka server, which is not needed here. Variables: `KAFKA_*`."""

    model_config = SettingsConfigDict(env_prefix="KAFKA_", extra="ignore")

    url: str = "localhost:9092"
    host: str | None = None
    port: int | None = None


class AWSMessageQueueConfig(BaseSettings):
    """Queues of AWS, which are not needed here."""

    model_config = SettingsConfigDict(extra="ignore")

    aws_region: str | None = None
    aws_access_key_id: str | None = None
    aws_secret_access_key: str | None = None


class SolaceMessageQueueConfig(BaseSettings):
    """A Solace broker, which is not needed here."""

    model_config = SettingsConfigDict(extra="allow")


def _url(config: ControlPlaneConfig | WorkflowServiceConfig) -> str:
    scheme = "https" if config.use_tls else "http"
    return f"{scheme}://{config.host}:{config.port}" if config.port else f"{scheme}://{config.host}"
