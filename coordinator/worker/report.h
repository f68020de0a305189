#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "common/core/json.h"
#include "common/core/result.h"

namespace retort {

/// What a run's output folder tells of it: state, passes with their loss curves, what was quantized and cut,
/// evaluations, samples, artifacts. docs/recipes.md, "Reports", lists the members. Lines of progress.jsonl
/// that a crash tore are left out. kNotFound where there was no run.
Result<json::object> run_report(const std::filesystem::path& folder);

/// One page with everything in it: no script, no link to elsewhere.
std::string report_html(const json::object& report);

/// One row an exported file, of all the runs: "run", "label", "file", "bytes", "parameters",
/// "bits_per_weight", and what its evaluation found.
json::array comparison(const std::vector<json::object>& reports);
std::string comparison_table(const json::array& rows);  ///< as text
std::string comparison_html(const json::array& rows, const std::vector<json::object>& reports);

}  // namespace retort
