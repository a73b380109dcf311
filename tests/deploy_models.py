"""The documented fields of Compose files and of KubeRay's resources, as far as deploy/ uses them.

Sources: the Compose Specification (compose-spec.io); KubeRay's API reference, ray.io/v1; the
Kubernetes API reference, v1.  An unknown field is an error, as `kubectl apply` has it.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Quantity = Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)?(m|Ki|Mi|Gi|Ti)?$")]
Bytes = Annotated[str, StringConstraints(pattern=r"^\d+(b|kb?|mb?|gb?)$")]
Duration = Annotated[str, StringConstraints(pattern=r"^\d+(ms|s|m|h)$")]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)


# Compose


class Build(Strict):
    context: str
    dockerfile: str
    args: dict[str, str] = {}


class Healthcheck(Strict):
    test: list[str]
    interval: Duration
    timeout: Duration
    retries: int
    start_period: Duration | None = None


class Limits(Strict):
    cpus: str
    memory: Bytes


class ComposeResources(Strict):
    limits: Limits


class ComposeDeploy(Strict):
    replicas: int = 1
    resources: ComposeResources


class Condition(Strict):
    condition: Literal["service_started", "service_healthy", "service_completed_successfully"]


class Service(Strict):
    image: str
    build: Build | None = None
    hostname: str | None = None
    init: bool = False
    restart: Literal["no", "always", "on-failure", "unless-stopped"] = "no"
    shm_size: Bytes | None = None
    environment: dict[str, str] = {}
    profiles: list[Name] = []
    ports: list[str] = []
    cap_drop: list[str] = []
    security_opt: list[str] = []
    command: list[str] = []
    volumes: list[str] = []
    healthcheck: Healthcheck | None = None
    depends_on: dict[str, Condition] = {}
    deploy: ComposeDeploy | None = None


class Compose(Strict):
    name: Name
    services: dict[str, Service]
    volumes: dict[str, None] = {}

    @model_validator(mode="after")
    def names_exist(self) -> "Compose":
        for name, service in self.services.items():
            for other, condition in service.depends_on.items():
                if other not in self.services:
                    raise ValueError(f"{name} depends on {other}, which is no service")
                healthy = condition.condition == "service_healthy"
                if healthy and self.services[other].healthcheck is None:
                    raise ValueError(f"{name} waits for the health of {other}, which has no check")
            for volume in service.volumes:
                source = volume.split(":")[0]
                if not source.startswith((".", "/")) and source not in self.volumes:
                    raise ValueError(f"{name} mounts {source}, which is no volume")
        return self


# Prometheus and Grafana: prometheus.io, Configuration; Grafana documentation, Provisioning


class DnsConfig(Strict):
    names: list[str]
    type: Literal["A", "AAAA", "SRV"]
    port: Annotated[int, Field(gt=0, lt=1 << 16)]


class ScrapeConfig(Strict):
    job_name: str
    dns_sd_configs: list[DnsConfig]


class PrometheusGlobal(Strict):
    scrape_interval: Duration


class Prometheus(Strict):
    global_: PrometheusGlobal = Field(alias="global")
    scrape_configs: list[ScrapeConfig]


class Datasource(Strict):
    name: str
    type: Literal["prometheus"]
    url: str
    isDefault: bool


class Datasources(Strict):
    apiVersion: Literal[1]
    datasources: list[Datasource]


class ProviderOptions(Strict):
    path: str


class Provider(Strict):
    name: str
    type: Literal["file"]
    options: ProviderOptions


class Providers(Strict):
    apiVersion: Literal[1]
    providers: list[Provider]


# Kubernetes


class Metadata(Strict):
    name: Name
    labels: dict[str, str] = {}


class Port(Strict):
    containerPort: Annotated[int, Field(gt=0, lt=1 << 16)]
    name: Name


class Resources(Strict):
    requests: dict[Literal["cpu", "memory"], Quantity]
    limits: dict[Literal["cpu", "memory"], Quantity]


class Capabilities(Strict):
    drop: list[str]


class ContainerSecurity(Strict):
    allowPrivilegeEscalation: bool
    capabilities: Capabilities


class PodSecurity(Strict):
    runAsNonRoot: bool
    runAsUser: int
    fsGroup: int


class HttpGet(Strict):
    path: str
    port: int


class Probe(Strict):
    httpGet: HttpGet
    initialDelaySeconds: int
    periodSeconds: int
    timeoutSeconds: int
    failureThreshold: int


class VolumeMount(Strict):
    name: Name
    mountPath: str


class SecretRef(Strict):
    name: Name


class EnvFrom(Strict):
    secretRef: SecretRef


class Container(Strict):
    name: Name
    image: str
    envFrom: list[EnvFrom] = []
    ports: list[Port] = []
    resources: Resources
    readinessProbe: Probe
    livenessProbe: Probe
    securityContext: ContainerSecurity
    volumeMounts: list[VolumeMount] = []


class Claim(Strict):
    claimName: Name


class EmptyDir(Strict):
    medium: Literal["", "Memory"] = ""
    sizeLimit: Quantity


class Volume(Strict):
    name: Name
    persistentVolumeClaim: Claim | None = None
    emptyDir: EmptyDir | None = None

    @model_validator(mode="after")
    def one_source(self) -> "Volume":
        if (self.persistentVolumeClaim is None) == (self.emptyDir is None):
            raise ValueError(f"volume {self.name} needs one source")
        return self


class LabelSelector(Strict):
    matchLabels: dict[str, str]


class Spread(Strict):
    maxSkew: int
    topologyKey: str
    whenUnsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"]
    labelSelector: LabelSelector


class PodSpec(Strict):
    securityContext: PodSecurity
    terminationGracePeriodSeconds: int | None = None
    topologySpreadConstraints: list[Spread] = []
    containers: list[Container]
    volumes: list[Volume] = []

    @model_validator(mode="after")
    def mounts_exist(self) -> "PodSpec":
        names = {volume.name for volume in self.volumes}
        for container in self.containers:
            for mount in container.volumeMounts:
                if mount.name not in names:
                    raise ValueError(f"{container.name} mounts {mount.name}, which is no volume")
        return self


class PodTemplate(Strict):
    spec: PodSpec


class AuthOptions(Strict):
    mode: Literal["disabled", "token"]


class HeadGroup(Strict):
    serviceType: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    rayStartParams: dict[str, str]
    template: PodTemplate


class WorkerGroup(Strict):
    groupName: Name
    replicas: int
    minReplicas: int
    maxReplicas: int
    rayStartParams: dict[str, str]
    template: PodTemplate

    @model_validator(mode="after")
    def replicas_in_range(self) -> "WorkerGroup":
        if not self.minReplicas <= self.replicas <= self.maxReplicas:
            raise ValueError(f"{self.groupName}: replicas are outside of their range")
        return self


class RayClusterSpec(Strict):
    rayVersion: str
    authOptions: AuthOptions
    enableInTreeAutoscaling: bool
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup]


class RayCluster(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: RayClusterSpec


class RayJobSpec(Strict):
    entrypoint: str
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]
    backoffLimit: int
    shutdownAfterJobFinishes: bool
    ttlSecondsAfterFinished: int
    rayClusterSpec: RayClusterSpec


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: RayJobSpec


class StorageRequest(Strict):
    requests: dict[Literal["storage"], Quantity]


class ClaimSpec(Strict):
    accessModes: list[Literal["ReadWriteOnce", "ReadWriteMany", "ReadOnlyMany"]]
    resources: StorageRequest


class PersistentVolumeClaim(Strict):
    apiVersion: Literal["v1"]
    kind: Literal["PersistentVolumeClaim"]
    metadata: Metadata
    spec: ClaimSpec


KINDS = {kind.__name__: kind for kind in (RayCluster, RayJob, PersistentVolumeClaim)}
