{{- define "edgetune.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- /* Prefix of resource names: the release's name, with the chart's name unless it already contains that. */ -}}
{{- define "edgetune.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains (include "edgetune.name" .) .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "edgetune.name" .) | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- /* Prefix of the names of cluster-scoped resources: several namespaces may have a release of the same name. */ -}}
{{- define "edgetune.clusterName" -}}
{{- printf "%s-%s" (include "edgetune.fullname" .) .Release.Namespace }}
{{- end }}

{{- define "edgetune.selectorLabels" -}}
app.kubernetes.io/name: {{ include "edgetune.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "edgetune.labels" -}}
{{ include "edgetune.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "edgetune.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "edgetune.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- /* Reference of an image; takes a dict of image (repository, tag, digest) and version (the default tag). */ -}}
{{- define "edgetune.imageReference" -}}
{{- if .image.digest }}
{{- printf "%s@%s" .image.repository .image.digest }}
{{- else }}
{{- printf "%s:%s" .image.repository (default .version .image.tag) }}
{{- end }}
{{- end }}

{{- define "edgetune.operatorImage" -}}
{{- include "edgetune.imageReference" (dict "image" .Values.image "version" .Chart.AppVersion) }}
{{- end }}

{{- /* The profiles file, as JSON, which is valid YAML: some versions of Helm write 1000000 in YAML as 1e+06, which is read as a string. */ -}}
{{- define "edgetune.profiles" -}}
{{- $reference := include "edgetune.imageReference" (dict "image" .Values.jobsImage "version" .Chart.AppVersion) }}
{{- $defaults := dict "image" (dict "reference" $reference) }}
{{- if .Values.openshift }}
{{- $_ := set $defaults "openshift" true }}
{{- end }}
{{- $profiles := dict }}
{{- range $name, $profile := .Values.profiles }}
{{- $_ := set $profiles $name (mustMergeOverwrite (mustDeepCopy $defaults) $profile) }}
{{- end }}
{{- dict "profiles" $profiles | mustToPrettyJson }}
{{- end }}

{{- define "edgetune.restrictedPod" -}}
runAsNonRoot: true
{{- if not .Values.openshift }}
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
{{- end }}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "edgetune.restrictedContainer" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /* Whether stages wait in queues: "true" or empty. */ -}}
{{- define "edgetune.hasQueues" -}}
{{- range .Values.profiles }}{{- if .queue }}true{{- end }}{{- end }}
{{- end }}

{{- /* Whether trainings run on several nodes: "true" or empty. */ -}}
{{- define "edgetune.hasNodes" -}}
{{- range .Values.profiles }}
{{- $nodes := dig "train" "nodes" 1 (default dict .resources) }}
{{- if or (gt (int $nodes) 1) (gt (int (default 1 .maxNodes)) 1) }}true{{- end }}
{{- end }}
{{- end }}

{{- /* Rights of the operator in the namespaces that it watches. */ -}}
{{- define "edgetune.rules" -}}
- apiGroups: [edgetune.dev]
  resources: [lorafinetunes]
  # get: to read an object again after a conflict. patch: for the finalizer of objects with deletionPolicy Delete.
  verbs: [get, list, patch, watch]
- apiGroups: [edgetune.dev]
  resources: [lorafinetunes/status]
  verbs: [patch]
{{- if or .Values.openshift .Values.rbac.ownerReferencesPermissionEnforcement }}
- apiGroups: [edgetune.dev]
  resources: [lorafinetunes/finalizers]
  verbs: [update]
{{- end }}
- apiGroups: [batch]
  resources: [jobs]
  {{- if include "edgetune.hasQueues" . }}
  # patch: a Job that waits in a queue is changed in place, so that it keeps its place.
  verbs: [create, delete, get, list, patch, watch]
  {{- else }}
  verbs: [create, delete, get, list, watch]
  {{- end }}
{{- if and .Values.rbac.workloads (include "edgetune.hasQueues" .) }}
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [watch]
- apiGroups: [kueue.x-k8s.io]
  resources: [localqueues]
  verbs: [get]
{{- end }}
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [events]
  verbs: [create, watch]
{{- if include "edgetune.hasNodes" . }}
# The Pods of a training on several nodes find each other by the host names that its Service gives them.
- apiGroups: [""]
  resources: [services]
  verbs: [create, get]
{{- end }}
{{- end }}

{{- /* Rights on the Lease with a name. A name cannot restrict what is created. */ -}}
{{- define "edgetune.leaseRules" -}}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [{{ . }}]
  verbs: [get, update]
{{- end }}

{{- /* Selector of the namespaces that the operator watches. */ -}}
{{- define "edgetune.watchedNamespaceSelector" -}}
{{- if .Values.watchNamespaces -}}
matchExpressions:
  - key: kubernetes.io/metadata.name
    operator: In
    values: {{ toJson .Values.watchNamespaces }}
{{- else -}}
{}
{{- end }}
{{- end }}
