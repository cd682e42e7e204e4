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
{{- $nodes := 1 }}
{{- range $stage, $resources := $fields.resources }}
{{- $gpus := include "edgetune.gpus" $resources | fromJson }}
{{- if gt (len $gpus) 1 }}
{{- fail (printf "profiles.%s.resources.%s: GPUs of several kinds (%s), but a stage uses GPUs of one kind; remove the others" $profile $stage (keys $gpus | sortAlpha | join ", ")) }}
{{- end }}
{{- if eq $stage "train" }}
{{- $training = $gpus }}
{{- $nodes = int (default 1 $resources.nodes) }}
{{- end }}
{{- end }}
{{- $kind := keys $training | join "" }}
{{- $count := values $training | join "" }}
{{- $most := int (default $nodes $fields.maxNodes) }}
{{- if gt $nodes $most }}
{{- fail (printf "profiles.%s.maxNodes: %d is less than the %d nodes of resources.train; raise or remove it" $profile $most $nodes) }}
{{- end }}
{{- if and (gt $nodes 1) (gt (mul $nodes (max 1 (atoi $count))) 64) }}
{{- fail (printf "profiles.%s.resources.train.nodes: %s GPUs on each of %d nodes, but at most 64 train together; lower it" $profile $count $nodes) }}
{{- end }}
{{- if and (gt $most 1) (contains "/mig-" $kind) }}
{{- fail (printf "profiles.%s: the slices of a GPU cannot train together; remove maxNodes and resources.train.nodes" $profile) }}
{{- end }}
{{- if and (gt $most $nodes) (eq $kind "") }}
{{- fail (printf "profiles.%s.maxNodes: needs GPUs in resources.train, for which spec.training.gpus asks; remove it" $profile) }}
{{- end }}
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
