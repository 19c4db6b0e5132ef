// SPDX-License-Identifier: AGPL-3.0-only

package recovery

// Progress is told what is being done. The zero value is silent.
type Progress struct {
	// Start begins a step of so many bytes (0: unknown). Add counts on. Done ends the step.
	Start func(what string, bytes int64)
	Add   func(bytes int64)
	Done  func()

	// Step names a step that has no length.
	Step func(what string)
}

func (p Progress) start(what string, bytes int64) func() {
	if p.Start == nil {
		return func() {}
	}

	p.Start(what, bytes)
	return p.Done
}

func (p Progress) add(bytes int64) {
	if p.Add != nil {
		p.Add(bytes)
	}
}

func (p Progress) step(what string) {
	if p.Step != nil {
		p.Step(what)
	}
}
