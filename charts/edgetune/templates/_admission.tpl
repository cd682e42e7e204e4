{{- /* What Jobs of the profiles may name, as JSON: lists of images, Secrets and so on. */ -}}
{{- define "edgetune.allowed" -}}
{{- $allowed := dict "images" list "secrets" list "signingSecrets" list "trackingSecrets" list "configMaps" list "hostPaths" list "claims" list "accounts" (list "default")
  "priorityClasses" list "runtimeClasses" list "pullSecrets" list "queues" list "variables" list "labels" list "annotations" list }}
{{- range (include "edgetune.profiles" . | fromJson).profiles }}
{{- $_ := set $allowed "images" (append $allowed.images .image.reference) }}
{{- $_ := set $allowed "pullSecrets" (concat $allowed.pullSecrets (default list .image.pullSecrets)) }}
{{- $_ := set $allowed "secrets" (append $allowed.secrets .store.credentialsSecret) }}
{{- $_ := set $allowed "signingSecrets" (append $allowed.signingSecrets (default dict .signing).secretName) }}
{{- $_ := set $allowed "trackingSecrets" (append $allowed.trackingSecrets (default dict (default dict .tracking).mlflow).credentialsSecret) }}
{{- $_ := set $allowed "configMaps" (append $allowed.configMaps .caBundleConfigMap) }}
{{- $_ := set $allowed "hostPaths" (append $allowed.hostPaths (default dict .cache).hostPath) }}
{{- $_ := set $allowed "claims" (append $allowed.claims (default dict .cache).persistentVolumeClaim) }}
{{- $_ := set $allowed "accounts" (append $allowed.accounts .serviceAccountName) }}
{{- $_ := set $allowed "priorityClasses" (append $allowed.priorityClasses .priorityClassName) }}
{{- $_ := set $allowed "runtimeClasses" (append $allowed.runtimeClasses .runtimeClassName) }}
{{- $_ := set $allowed "queues" (append $allowed.queues (default dict .queue).name) }}
{{- $_ := set $allowed "variables" (concat $allowed.variables (keys (default dict .env))) }}
{{- $_ := set $allowed "labels" (concat $allowed.labels (keys (default dict .podLabels))) }}
{{- $_ := set $allowed "annotations" (concat $allowed.annotations (keys (default dict .podAnnotations))) }}
{{- end }}
{{- range $what, $names := $allowed }}
{{- $_ := set $allowed $what (without $names nil "" | uniq | sortAlpha) }}
{{- end }}
{{- $allowed | mustToRawJson }}
{{- end }}
