//go:build tools

// Package tools names promtool, so that `go mod tidy` keeps it.
package tools

import _ "github.com/prometheus/prometheus/cmd/promtool"
