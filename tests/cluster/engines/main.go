// Command gitops-engines says what GitOps engines make of objects, with the libraries that the engines themselves use.
//
// The first value on stdin has the integrations, each following one an object, with an action of Argo CD to run on it
// if it names one. Each object is answered by one line on stdout.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	fluxstatus "github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"github.com/fluxcd/pkg/apis/kustomize"
	"github.com/fluxcd/pkg/runtime/cel"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
	"sigs.k8s.io/yaml"
)

// integrations are the scripts and expressions of a kind, as in argocd-cm and in a Flux Kustomization.
type integrations struct {
	Health  string                           `json:"health"`
	Actions string                           `json:"actions"`
	Exprs   kustomize.HealthCheckExpressions `json:"healthCheckExprs"`
}

type question struct {
	Object map[string]any `json:"object"`
	Action string         `json:"action"`
}

type answer struct {
	// Verdict of sigs.k8s.io/cli-utils/pkg/kstatus.
	KStatus string `json:"kstatus"`
	// Verdict of Flux without healthCheckExprs: its own copy of kstatus.
	FluxDefault string `json:"fluxDefault"`
	Flux        string `json:"flux"`
	Argo        health `json:"argo"`
	// Names of the actions that Argo CD offers for the object; true for those that can be used now.
	Actions map[string]bool `json:"actions"`
	// Merge patch that the action makes, as Argo CD sends it to the API server.
	Patch json.RawMessage `json:"patch,omitempty"`
}

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer) error {
	questions, answers := json.NewDecoder(in), json.NewEncoder(out)
	questions.DisallowUnknownFields()
	var given integrations
	if err := questions.Decode(&given); err != nil {
		return fmt.Errorf("integrations: %w", err)
	}
	var definitions actions
	if err := yaml.UnmarshalStrict([]byte(given.Actions), &definitions); err != nil {
		return fmt.Errorf("actions: %w", err)
	}
	flux, err := cel.NewStatusEvaluator(&given.Exprs)
	if err != nil {
		return fmt.Errorf("healthCheckExprs: %w", err)
	}
	for number := 1; ; number++ {
		var asked question
		if err := questions.Decode(&asked); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("object %d: %w", number, err)
		}
		answered, err := judge(asked, given, definitions, flux)
		if err != nil {
			return fmt.Errorf("object %d: %w", number, err)
		}
		if err := answers.Encode(answered); err != nil {
			return err
		}
	}
}

func judge(asked question, given integrations, definitions actions, flux *cel.StatusEvaluator) (answer, error) {
	object, err := whole(asked.Object)
	if err != nil {
		return answer{}, err
	}
	generic, err := status.Compute(object)
	if err != nil {
		return answer{}, fmt.Errorf("kstatus: %w", err)
	}
	byDefault, err := fluxstatus.Compute(object)
	if err != nil {
		return answer{}, fmt.Errorf("kstatus of Flux: %w", err)
	}
	evaluated, err := flux.Evaluate(context.Background(), object)
	if err != nil {
		return answer{}, fmt.Errorf("healthCheckExprs: %w", err)
	}
	answered := answer{
		KStatus:     generic.Status.String(),
		FluxDefault: byDefault.Status.String(),
		Flux:        evaluated.Status.String(),
	}
	if answered.Argo, err = judgeHealth(object, given.Health); err != nil {
		return answer{}, fmt.Errorf("health script: %w", err)
	}
	if answered.Actions, err = discover(object, definitions); err != nil {
		return answer{}, fmt.Errorf("discovery script: %w", err)
	}
	if asked.Action != "" {
		if answered.Patch, err = act(object, definitions, asked.Action); err != nil {
			return answer{}, fmt.Errorf("action %s: %w", asked.Action, err)
		}
	}
	return answered, nil
}

// whole reads an object as clients of the API server do: integers are int64, not float64.
func whole(fields map[string]any) (*unstructured.Unstructured, error) {
	text, err := json.Marshal(fields)
	if err != nil {
		return nil, err
	}
	object := &unstructured.Unstructured{}
	return object, object.UnmarshalJSON(text)
}
