// Reads a Modelfile and conversations in JSON, and prints the prompts that Ollama would give the model, by Ollama's own
// parser and templates.
//
//	ollama-prompts MODELFILE < [[{"role": "user", "content": "…"}], …]
package main

import (
	"bytes"
	"encoding/json"
	"log"
	"os"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/parser"
	"github.com/ollama/ollama/template"
)

type answer struct {
	Prompts  []string            `json:"prompts"`
	Commands map[string][]string `json:"commands"`
}

func main() {
	file, err := os.Open(os.Args[1])
	check(err)
	modelfile, err := parser.ParseFile(file)
	check(err)
	found := answer{Prompts: []string{}, Commands: map[string][]string{}}
	for _, command := range modelfile.Commands {
		found.Commands[command.Name] = append(found.Commands[command.Name], command.Args)
	}
	var conversations [][]api.Message
	check(json.NewDecoder(os.Stdin).Decode(&conversations))
	for _, messages := range conversations {
		parsed, err := template.Parse(found.Commands["template"][0])
		check(err)
		var prompt bytes.Buffer
		check(parsed.Execute(&prompt, template.Values{Messages: messages}))
		found.Prompts = append(found.Prompts, prompt.String())
	}
	check(json.NewEncoder(os.Stdout).Encode(found))
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
