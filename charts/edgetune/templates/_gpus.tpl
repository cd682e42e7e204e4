{{- /* GPUs by the name of their resource, as JSON; takes the resources of a stage. Those that it claims are `claims`. */ -}}
{{- define "edgetune.gpus" -}}
{{- $quantities := dict }}
{{- range list .requests .limits }}
{{- range $name, $count := . }}
{{- $_ := set $quantities $name (toString $count) }}
{{- end }}
{{- end }}
{{- $gpus := dict }}
{{- range $name, $count := $quantities }}
{{- if and (regexMatch `^([^/]+/gpu|[^/]+/mig-.+|gpu\.intel\.com/(i915|xe))$` $name) (atoi $count) }}
{{- $_ := set $gpus $name (atoi $count) }}
{{- end }}
{{- end }}
{{- with .claims }}
{{- $_ := set $gpus "claims" (len .) }}
{{- end }}
{{- toJson $gpus }}
{{- end }}

{{- /* Refuse numbers of GPUs with which the operator would not start. The schema of the values refuses the others. */ -}}
{{- define "edgetune.checkGpus" -}}
{{- range $profile, $fields := .Values.profiles }}
{{- $training := dict "nvidia.com/gpu" 1 }}
{{- range $stage, $resources := $fields.resources }}
{{- $gpus := include "edgetune.gpus" $resources | fromJson }}
{{- if gt (len $gpus) 1 }}
{{- fail (printf "profiles.%s.resources.%s: GPUs of several kinds (%s), but a stage uses GPUs of one kind; remove the others" $profile $stage (keys $gpus | sortAlpha | join ", ")) }}
{{- end }}
{{- if eq $stage "train" }}
{{- $training = $gpus }}
{{- end }}
{{- end }}
{{- $kind := keys $training | join "" }}
{{- $count := values $training | join "" }}
{{- with $fields.maxGpus }}
{{- if and (gt (int .) 1) (or (eq $kind "" "claims") (contains "/mig-" $kind)) }}
{{- fail (printf "profiles.%s.maxGpus: needs whole GPUs in the requests or limits of resources.train; remove maxGpus" $profile) }}
{{- end }}
{{- if gt (atoi $count) (int .) }}
{{- fail (printf "profiles.%s.maxGpus: %v is less than the %s GPUs of resources.train; raise or remove maxGpus" $profile . $count) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
