package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	jsonpatch "github.com/evanphx/json-patch"
	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	luajson "layeh.com/gopher-json"
)

// How Argo CD 3.5 runs scripts, after util/lua/lua.go. That package cannot be imported: argo-cd replaces modules in its
// go.mod, one of them by a folder.

const scriptLimit = time.Second

type health struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

var healthCodes = map[string]bool{
	"Unknown": true, "Progressing": true, "Healthy": true, "Suspended": true, "Degraded": true, "Missing": true,
}

// actions is the value of resource.customizations.actions in argocd-cm.
type actions struct {
	Discovery   string       `json:"discovery.lua"`
	Definitions []definition `json:"definitions"`
}

type definition struct {
	Name   string `json:"name"`
	Script string `json:"action.lua"`
}

func judgeHealth(object *unstructured.Unstructured, script string) (health, error) {
	returned, err := runScript(object, script)
	if err != nil {
		return health{}, err
	}
	var found health
	if err := json.Unmarshal(returned, &found); err != nil {
		return health{}, err
	}
	if !healthCodes[found.Status] {
		return health{}, fmt.Errorf("Argo CD has no health %q", found.Status)
	}
	return found, nil
}

func discover(object *unstructured.Unstructured, definitions actions) (map[string]bool, error) {
	returned, err := runScript(object, definitions.Discovery)
	if err != nil {
		return nil, err
	}
	var found map[string]struct {
		Disabled bool `json:"disabled"`
	}
	if err := json.Unmarshal(returned, &found); err != nil {
		return nil, err
	}
	usable := map[string]bool{}
	for name, action := range found {
		usable[name] = !action.Disabled
	}
	return usable, nil
}

// act returns the merge patch by which Argo CD changes the object.
func act(object *unstructured.Unstructured, definitions actions, name string) ([]byte, error) {
	for _, definition := range definitions.Definitions {
		if definition.Name != name {
			continue
		}
		before, err := json.Marshal(object)
		if err != nil {
			return nil, err
		}
		returned, err := runScript(object, definition.Script)
		if err != nil {
			return nil, err
		}
		var changed map[string]any
		if err := json.Unmarshal(returned, &changed); err != nil {
			return nil, err
		}
		after, err := json.Marshal(withEmptyObjects(changed, object.Object))
		if err != nil {
			return nil, err
		}
		return jsonpatch.CreateMergePatch(before, after)
	}
	return nil, fmt.Errorf("there is no such action")
}

// runScript returns the table that a script returns, as JSON.
func runScript(object *unstructured.Unstructured, script string) ([]byte, error) {
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for _, library := range []struct {
		name string
		open lua.LGFunction
	}{
		{lua.LoadLibName, lua.OpenPackage},
		{lua.BaseLibName, lua.OpenBase},
		{lua.TabLibName, lua.OpenTable},
		{lua.OsLibName, lua.OpenOs},
	} {
		call := lua.P{Fn: state.NewFunction(library.open), NRet: 0, Protect: true}
		if err := state.CallByParam(call, lua.LString(library.name)); err != nil {
			return nil, err
		}
	}
	restrictClock(state)
	limited, cancel := context.WithTimeout(context.Background(), scriptLimit)
	defer cancel()
	state.SetContext(limited)
	state.SetGlobal("obj", luaValue(state, object.Object))
	if err := state.DoString(script); err != nil {
		return nil, err
	}
	returned := state.Get(-1)
	if returned.Type() != lua.LTTable {
		return nil, fmt.Errorf("the script returns %s, not a table", returned.Type())
	}
	return luajson.Encode(returned)
}

// restrictClock leaves only date and time of the library os, and these only to `require`.
func restrictClock(state *lua.LState) {
	full := state.GetGlobal(lua.OsLibName)
	clock := state.NewTable()
	for _, name := range []string{"date", "time"} {
		clock.RawSetString(name, state.GetField(full, name))
	}
	state.SetGlobal(lua.OsLibName, lua.LNil)
	// `require` would return the full library.
	state.SetField(state.GetField(state.GetGlobal(lua.LoadLibName), "loaded"), lua.OsLibName, lua.LNil)
	state.PreloadModule(lua.OsLibName, func(state *lua.LState) int {
		state.Push(clock)
		return 1
	})
}

func luaValue(state *lua.LState, value any) lua.LValue {
	switch converted := value.(type) {
	case bool:
		return lua.LBool(converted)
	case float64:
		return lua.LNumber(converted)
	case int64:
		return lua.LNumber(converted)
	case string:
		return lua.LString(converted)
	case []any:
		array := state.CreateTable(len(converted), 0)
		for _, item := range converted {
			array.Append(luaValue(state, item))
		}
		return array
	case map[string]any:
		table := state.CreateTable(0, len(converted))
		for key, item := range converted {
			table.RawSetString(key, luaValue(state, item))
		}
		return table
	}
	return lua.LNil
}

// withEmptyObjects restores empty objects, which Lua cannot tell from empty arrays, where the object had them before.
func withEmptyObjects(after, before any) any {
	switch changed := after.(type) {
	case map[string]any:
		if was, ok := before.(map[string]any); ok {
			for key, value := range changed {
				changed[key] = withEmptyObjects(value, was[key])
			}
		}
	case []any:
		switch was := before.(type) {
		case map[string]any:
			if len(changed) == 0 {
				return map[string]any{}
			}
		case []any:
			for index := range min(len(changed), len(was)) {
				changed[index] = withEmptyObjects(changed[index], was[index])
			}
		}
	}
	return after
}
