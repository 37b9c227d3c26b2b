{{/* Labels of every object of the chart. */}}
{{- define "kaas.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: kaas
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{ include "kaas.selector" . }}
{{- end }}

{{/* Labels that select the operator's pods; they can never change. */}}
{{- define "kaas.selector" -}}
app.kubernetes.io/name: kaas-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/*
The operator's image. `registry` replaces the host part: what stands before the first slash, when it looks like a host.
The operator does the same to the images of the catalogue.
*/}}
{{- define "kaas.image" -}}
{{- $repository := .Values.image.repository }}
{{- if .Values.registry }}
{{- $path := regexReplaceAll "^([^/]*[.:][^/]*|localhost)/" $repository "" }}
{{- $repository = printf "%s/%s" (trimSuffix "/" .Values.registry) $path }}
{{- end }}
{{- printf "%s:%s" $repository (.Values.image.tag | default .Chart.AppVersion) }}
{{- end }}

{{/* Refuses values whose form values.schema.json could only refuse by showing a pattern. */}}
{{- define "kaas.validate" -}}
{{- if not (regexMatch "^([a-z0-9][a-z0-9.-]*(:[0-9]+)?(/[a-z0-9._-]+)*/?)?$" .Values.registry) }}
{{- fail (printf "registry: '%s' must be host[:port][/path] without scheme, for example mirror.example/k8s" .Values.registry) }}
{{- end }}
{{- $host := .Values.endpoint.nodePort.host }}
{{- if not (regexMatch "^([a-z0-9]([a-z0-9.-]*[a-z0-9])?)?$" $host) }}
{{- fail (printf "endpoint.nodePort.host: '%s' must be an IPv4 address or a host name without scheme and port, for example 192.0.2.7" $host) }}
{{- end }}
{{- $mirror := .Values.workers.pod.mirror }}
{{- if not (regexMatch "^(https?://[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]+)?(/[A-Za-z0-9._/-]*)?)?$" $mirror) }}
{{- fail (printf "workers.pod.mirror: '%s' must be the URL of a registry, for example http://registry.registry.svc:5000" $mirror) }}
{{- end }}
{{- range $use, $networks := .Values.managementNetworks }}
{{- range $networks }}
{{- if not (regexMatch "^[0-9a-f.:]+/[0-9]{1,3}$" .) }}
{{- fail (printf "managementNetworks.%s: '%s' must be a network in CIDR notation, for example 10.0.0.0/16" $use .) }}
{{- end }}
{{- end }}
{{- end }}
{{- $durations := dict
  "leaseDuration" .Values.leaseDuration
  "probeInterval" .Values.probeInterval
  "certificates.leafLifetime" .Values.certificates.leafLifetime
  "certificates.authorityLifetime" .Values.certificates.authorityLifetime }}
{{- range $name, $duration := $durations }}
{{- if not (regexMatch "^([0-9]+(ms|s|m|h))+$" $duration) }}
{{- fail (printf "%s: '%s' must be a duration in ms, s, m or h, for example 10s" $name $duration) }}
{{- end }}
{{- end }}
{{- end }}
