{{/* What everything is called, labelled and secured by. */}}

{{- define "llama-deploy.name" -}}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains "llama-deploy" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}{{ printf "%s-llama-deploy" .Release.Name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* The name of a service's objects: names of services may have characters that Kubernetes does not allow. */}}
{{- define "llama-deploy.serviceName" -}}
{{- $plain := .service | lower | replace "_" "-" | replace "." "-" }}
{{- if ne $plain .service }}{{ $plain = printf "%s-%s" $plain (.service | sha256sum | trunc 6) }}{{ end }}
{{- printf "%s-%s" (include "llama-deploy.name" .root) $plain | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "llama-deploy.selector" -}}
app.kubernetes.io/name: llama-deploy
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "llama-deploy.labels" -}}
{{ include "llama-deploy.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "llama-deploy.secretName" -}}
{{- if .Values.secret.existingName }}{{ .Values.secret.existingName }}
{{- else if .Values.secret.values }}{{ include "llama-deploy.name" . }}
{{- end }}
{{- end }}

{{- define "llama-deploy.file" -}}
{{- if .Values.deployment }}/etc/llama-deploy/deployment.yml{{ else }}{{ .Values.deploymentFile }}{{ end }}
{{- end }}

{{/* The deployment file: as it is given, with TLS, and with the audit log where a container may write it. */}}
{{- define "llama-deploy.deployment" -}}
{{- $file := deepCopy .Values.deployment }}
{{- $access := default (dict) $file.access }}
{{- if .Values.tls.secretName }}
{{- if $access.tls }}{{ fail "access.tls of the deployment file and tls.secretName say the same: leave one of them out" }}{{ end }}
{{- $tls := dict "certificate-file" "/etc/llama-deploy-tls/tls.crt" "key-file" "/etc/llama-deploy-tls/tls.key" }}
{{- if .Values.tls.clientSecretName }}
{{- $_ := set $tls "client-ca-file" "/etc/llama-deploy-client-tls/ca.crt" }}
{{- end }}
{{- $_ := set $access "tls" $tls }}
{{- end }}
{{- if and $access.tokens (not $access.audit) }}
{{- $_ := set $access "audit" (dict "file" "-") }}
{{- end }}
{{- if $access }}{{ $_ := set $file "access" $access }}{{ end }}
{{- toYaml $file }}
{{- end }}

{{- define "llama-deploy.scheme" -}}
{{- if .Values.tls.secretName }}https{{ else }}http{{ end }}
{{- end }}

{{/* What everybody here believes, and shows where it is asked for. */}}
{{- define "llama-deploy.tlsEnvironment" -}}
{{- if .Values.tls.secretName }}
- name: LLAMA_DEPLOY_CA_FILE
  value: /etc/llama-deploy-tls/ca.crt
{{- end }}
{{- if .Values.tls.clientSecretName }}
- name: LLAMA_DEPLOY_CLIENT_CERTIFICATE_FILE
  value: /etc/llama-deploy-client-tls/tls.crt
- name: LLAMA_DEPLOY_CLIENT_KEY_FILE
  value: /etc/llama-deploy-client-tls/tls.key
{{- end }}
{{- end }}

{{- define "llama-deploy.tlsMounts" -}}
{{- if .Values.tls.secretName }}
- {name: tls, mountPath: /etc/llama-deploy-tls, readOnly: true}
{{- end }}
{{- if .Values.tls.clientSecretName }}
- {name: client-tls, mountPath: /etc/llama-deploy-client-tls, readOnly: true}
{{- end }}
{{- end }}

{{/* A service gets no key of the server: of its secret, whom to believe. */}}
{{- define "llama-deploy.tlsVolumes" -}}
{{- with .root.Values.tls.secretName }}
- name: tls
  secret:
    secretName: {{ . }}
    defaultMode: 0440
    {{- if not $.server }}
    items: [{key: ca.crt, path: ca.crt}]
    {{- end }}
{{- end }}
{{- with .root.Values.tls.clientSecretName }}
- name: client-tls
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- end }}

{{- define "llama-deploy.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "llama-deploy.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
