#include "coordinator/worker/report.h"

#include <algorithm>
#include <cmath>

#include "common/core/file.h"
#include "common/core/units.h"

namespace retort {
namespace {

namespace fs = std::filesystem;

/// A member, or null.
const json::value& member(const json::object& object, std::string_view key) {
  static const json::value kNothing;
  const json::value* found = object.if_contains(key);
  return found != nullptr ? *found : kNothing;
}

std::optional<double> number(const json::value& value) {
  if (!value.is_number()) return std::nullopt;
  const double out = value.to_number<double>();
  return std::isfinite(out) ? std::optional(out) : std::nullopt;
}

std::string text(const json::value& value) {
  return value.is_string() ? std::string(value.get_string()) : std::string();
}

const json::array& list(const json::value& value) {
  static const json::array kNone;
  return value.is_array() ? value.get_array() : kNone;
}

std::string escaped(std::string_view raw) {
  std::string out;
  for (const char c : raw) switch (c) {
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '&':
        out += "&amp;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  return out;
}

std::string rounded(double value) {
  const double size = std::abs(value);
  if (value == std::floor(value) && size < 1e15) return fmt::format("{:.0f}", value);
  if (size >= 1000) return fmt::format("{:.0f}", value);
  return size >= 0.001 ? fmt::format("{:.4g}", value) : fmt::format("{:.2e}", value);
}

std::string cell(const json::value& value) {
  if (value.is_null()) return "–";
  if (value.is_string()) return escaped(text(value));
  if (const auto n = number(value)) return rounded(*n);
  return escaped(json::serialize(value));
}

std::string table(const std::vector<std::string>& head, const std::vector<std::vector<std::string>>& rows) {
  std::string out = "<table><tr>";
  for (const std::string& name : head) out += "<th>" + escaped(name) + "</th>";
  out += "</tr>\n";
  for (const auto& row : rows) {
    out += "<tr>";
    for (const std::string& one : row) out += "<td>" + one + "</td>";
    out += "</tr>\n";
  }
  return out + "</table>\n";
}

struct Curve {
  std::string name, colour;
  std::vector<std::pair<double, double>> points;
};

/// Lines over steps, as an SVG.
std::string chart(const std::vector<Curve>& curves) {
  constexpr double kWidth = 640, kHeight = 240, kLeft = 56, kBottom = 24, kTop = 10;
  double left = INFINITY, right = -INFINITY, low = INFINITY, high = -INFINITY;
  for (const Curve& curve : curves)
    for (const auto& [x, y] : curve.points)
      left = std::min(left, x), right = std::max(right, x), low = std::min(low, y), high = std::max(high, y);
  if (!(left <= right)) return "";
  if (right == left) right = left + 1;
  if (high == low) high = low + 1;
  const auto across = [&](double x) { return kLeft + (x - left) / (right - left) * (kWidth - kLeft - 10); };
  const auto down = [&](double y) { return kTop + (high - y) / (high - low) * (kHeight - kTop - kBottom); };
  std::string out = fmt::format("<svg viewBox=\"0 0 {} {}\" role=\"img\">", kWidth, kHeight);
  for (int i = 0; i <= 4; ++i) {
    const double y = low + (high - low) * i / 4;
    out += fmt::format(
        "<line x1=\"{}\" x2=\"{}\" y1=\"{:.1f}\" y2=\"{:.1f}\" class=\"grid\"/><text x=\"{}\" y=\"{:.1f}\" "
        "class=\"axis\" text-anchor=\"end\">{}</text>",
        kLeft, kWidth - 10, down(y), down(y), kLeft - 6, down(y) + 4, rounded(y));
  }
  for (const double x : {left, right})
    out += fmt::format("<text x=\"{:.1f}\" y=\"{}\" class=\"axis\" text-anchor=\"{}\">step {}</text>",
                       across(x), kHeight - 6, x == left ? "start" : "end", rounded(x));
  for (const Curve& curve : curves) {
    std::string points;
    for (const auto& [x, y] : curve.points) points += fmt::format("{:.1f},{:.1f} ", across(x), down(y));
    out += fmt::format(
        "<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"1.5\" "
        "points=\"{}\"><title>{}</title></polyline>",
        curve.colour, points, escaped(curve.name));
  }
  return out + "</svg>\n";
}

/// A bar for each name, lengths in proportion.
std::string bars(const std::vector<std::pair<std::string, double>>& values) {
  double most = 0;
  for (const auto& [name, value] : values) most = std::max(most, value);
  std::string out = "<table class=\"bars\">";
  for (const auto& [name, value] : values)
    out += fmt::format("<tr><td>{}</td><td><div style=\"width:{:.1f}%\"></div></td><td>{}</td></tr>\n",
                       escaped(name), most > 0 ? 100 * value / most : 0, rounded(value));
  return out + "</table>\n";
}

constexpr const char* kStyle =
    "<style>body{font:15px/1.45 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 "
    "1rem;color:#222}"
    "table{border-collapse:collapse;margin:.6rem 0}td,th{border:1px solid #ccc;padding:.2rem "
    ".5rem;text-align:left;"
    "vertical-align:top}th{background:#f3f3f3}svg{width:100%;max-width:640px}.grid{stroke:#ddd}.axis{font-"
    "size:11px;"
    "fill:#555}.bars td{border:none}.bars td:nth-child(2){width:22rem}.bars "
    "div{background:#4477aa;height:.8rem}"
    ".heat td{text-align:right;min-width:2rem}pre{white-space:pre-wrap;margin:0}</style>";

std::string page(const std::string& title, const std::string& body) {
  return fmt::format(
      "<!doctype html>\n<html lang=\"en\"><head><meta "
      "charset=\"utf-8\"><title>{}</title>{}</head>\n<body><h1>{}"
      "</h1>\n{}</body></html>\n",
      escaped(title), kStyle, escaped(title), body);
}

/// The confusion matrix, each row shaded by its shares.
std::string confusion(const json::object& evaluation) {
  std::vector<std::string> labels;
  for (const json::value& line : list(member(evaluation, "per_class")))
    if (line.is_object()) labels.push_back(text(member(line.get_object(), "label")));
  const json::array& rows = list(member(evaluation, "confusion"));
  if (rows.empty() || rows.size() != labels.size() || labels.size() > 40) return "";
  std::string out = "<table class=\"heat\"><tr><th>is \\ called</th>";
  for (const std::string& label : labels) out += "<th>" + escaped(label) + "</th>";
  out += "</tr>\n";
  for (std::size_t i = 0; i < rows.size(); ++i) {
    double sum = 0;
    for (const json::value& count : list(rows[i])) sum += number(count).value_or(0);
    out += "<tr><th>" + escaped(labels[i]) + "</th>";
    for (const json::value& count : list(rows[i])) {
      const double share = sum > 0 ? number(count).value_or(0) / sum : 0;
      out += fmt::format("<td style=\"background:rgba(68,119,170,{:.2f})\">{}</td>", share, cell(count));
    }
    out += "</tr>\n";
  }
  return out + "</table>\n";
}

/// The figures that a table of evaluations shows, where any has them.
const std::vector<std::string> kFigures{
    "perplexity", "perplexity_per_byte",       "bits_per_byte", "kl_divergence", "top1_agreement", "accuracy",
    "macro_f1",   "expected_calibration_error"};

std::string evaluations(const json::array& all) {
  std::vector<std::string> head{"label", "file"};
  for (const std::string& figure : kFigures)
    if (std::any_of(all.begin(), all.end(),
                    [&](const json::value& e) { return !member(e.as_object(), figure).is_null(); }))
      head.push_back(figure);
  std::vector<std::vector<std::string>> rows;
  std::string tables;
  for (const json::value& one : all) {
    std::vector<std::string> row;
    for (const std::string& name : head) row.push_back(cell(member(one.as_object(), name)));
    rows.push_back(std::move(row));
    const json::array& classes = list(member(one.as_object(), "per_class"));
    if (classes.empty()) continue;
    std::vector<std::vector<std::string>> lines;
    for (const json::value& line : classes)
      if (line.is_object()) {
        std::vector<std::string> cells;
        for (const char* name : {"label", "examples", "precision", "recall", "f1"})
          cells.push_back(cell(member(line.get_object(), name)));
        lines.push_back(std::move(cells));
      }
    tables += fmt::format("<details><summary>Classes of {}</summary>{}{}</details>\n",
                          escaped(text(member(one.as_object(), "label"))),
                          table({"label", "examples", "precision", "recall", "f1"}, lines),
                          confusion(one.as_object()));
  }
  return table(head, rows) + tables;
}

}  // namespace

Result<json::object> run_report(const fs::path& folder) {
  if (!fs::exists(folder / "progress.jsonl"))
    return fail(ErrorCode::kNotFound, folder.string(),
                "this is no run's output folder: it has no progress.jsonl");
  const std::string log = RETORT_TRY(read_file(folder / "progress.jsonl", 1ull << 30));
  json::object out{{"folder", folder.filename().string()}, {"state", "unfinished"}};
  json::array passes, quantized, sparsified, judged, samples, warnings, artifacts;
  const auto pass_of = [&](const json::object& event) -> json::object* {
    const auto index = number(member(event, "pass_index"));
    for (json::value& pass : passes)
      if (index && number(member(pass.as_object(), "pass_index")) == index) return &pass.get_object();
    return nullptr;
  };
  for (std::size_t at = 0; at < log.size();) {
    const std::size_t end = std::min(log.find('\n', at), log.size());
    const auto line = parse_json(std::string_view(log).substr(at, end - at), "progress.jsonl");
    at = end + 1;
    if (!line || !line->is_object()) continue;
    const json::object& event = line->get_object();
    const std::string kind = text(member(event, "event"));
    json::object facts = event;
    for (const char* key : {"event", "time", "unix_millis"}) facts.erase(key);
    if (kind == "plan") {
      out["plan"] = std::move(facts);
    } else if (kind == "pass_start") {
      if (pass_of(event) != nullptr) continue;  // a run that went on
      facts["loss"] = json::array();
      facts["held_out"] = json::array();
      passes.push_back(std::move(facts));
    } else if (kind == "progress" || kind == "held_out") {
      json::object* pass = pass_of(event);
      if (pass == nullptr || !number(member(event, "step")) || !number(member(event, "loss"))) continue;
      json::array& curve = (*pass)[kind == "progress" ? "loss" : "held_out"].as_array();
      // Steps that were done once more after an interruption.
      while (!curve.empty() && *number(curve.back().as_array()[0]) >= *number(member(event, "step")))
        curve.pop_back();
      curve.push_back(json::array{event.at("step"), event.at("loss")});
      if (kind == "progress") (*pass)["tokens_per_second"] = member(event, "tokens_per_second");
    } else if (kind == "best") {
      if (json::object* pass = pass_of(event)) (*pass)["best"] = std::move(facts);
    } else if (kind == "quantized") {
      quantized.push_back(std::move(facts));
    } else if (kind == "sparsified") {
      sparsified.push_back(std::move(facts));
    } else if (kind == "evaluation") {
      judged.push_back(std::move(facts));
    } else if (kind == "exported") {
      artifacts.push_back(std::move(facts));
    } else if (kind == "samples") {
      samples.push_back(std::move(facts));
    } else if (kind == "warning") {
      const json::value& message = member(event, "message");  // a run that goes on says it again
      if (std::find(warnings.begin(), warnings.end(), message) == warnings.end()) warnings.push_back(message);
    }
  }
  if (const auto text_of = read_file(folder / "result.json"))
    if (const auto result = parse_json(*text_of, "result.json"); result && result->is_object())
      for (const char* key : {"state", "error", "seconds", "recipe_sha256"})
        out[key] = member(result->get_object(), key);
  out["passes"] = std::move(passes);
  out["quantized"] = std::move(quantized);
  out["sparsified"] = std::move(sparsified);
  out["evaluations"] = std::move(judged);
  out["artifacts"] = std::move(artifacts);
  out["samples"] = std::move(samples);
  out["warnings"] = std::move(warnings);
  return out;
}

std::string report_html(const json::object& report) {
  std::string body = fmt::format("<p>State: {}", cell(member(report, "state")));
  if (const auto seconds = number(member(report, "seconds")))
    body += fmt::format(", {}", format_seconds(*seconds));
  body += fmt::format(". Recipe {}.</p>\n", cell(member(report, "recipe_sha256")));
  if (member(report, "error").is_object())
    body += fmt::format("<p>Error: {}</p>\n", cell(member(member(report, "error").get_object(), "message")));
  for (const json::value& warning : list(member(report, "warnings")))
    body += "<p>Warning: " + cell(warning) + "</p>\n";

  std::vector<std::vector<std::string>> rows;
  for (const json::value& artifact : list(member(report, "artifacts"))) {
    std::vector<std::string> row;
    for (const char* key : {"label", "file", "format", "parameters", "bytes", "bits_per_weight"})
      row.push_back(cell(member(artifact.as_object(), key)));
    rows.push_back(std::move(row));
  }
  if (!rows.empty())
    body +=
        "<h2>Files</h2>\n" + table({"label", "file", "format", "parameters", "bytes", "bits a weight"}, rows);
  if (const json::array& all = list(member(report, "evaluations")); !all.empty())
    body += "<h2>Evaluations</h2>\n" + evaluations(all);

  body += "<h2>Passes</h2>\n";
  for (const json::value& value : list(member(report, "passes"))) {
    const json::object& pass = value.as_object();
    body += fmt::format("<h3>{} {}</h3><p>{}, {} parameters</p>\n", cell(member(pass, "pass_index")),
                        cell(member(pass, "pass")), cell(member(pass, "model")),
                        cell(member(pass, "parameters")));
    std::vector<Curve> curves;
    for (const auto& [key, colour] : {std::pair{"loss", "#4477aa"}, {"held_out", "#cc6677"}}) {
      Curve curve{key == std::string("loss") ? "training loss" : "held-out loss", colour, {}};
      for (const json::value& point : list(member(pass, key)))
        curve.points.emplace_back(point.as_array()[0].to_number<double>(),
                                  point.as_array()[1].to_number<double>());
      if (curve.points.size() > 1) curves.push_back(std::move(curve));
    }
    if (curves.empty()) continue;
    body += "<p>Loss over steps (blue: training";
    if (curves.size() > 1) body += ", on different scales of the data; red: held-out";
    body += ")</p>\n" + chart(curves);
  }

  for (const json::value& value : list(member(report, "quantized"))) {
    std::vector<std::vector<std::string>> lines;
    std::vector<std::pair<std::string, double>> sensitivity, error;
    for (const json::value& line : list(member(value.as_object(), "tensors"))) {
      const json::object& tensor = line.as_object();
      const std::string name = text(member(tensor, "tensor"));
      if (const json::value& alone = member(tensor, "kl_divergence_alone"); alone.is_object()) {
        double worst = 0;
        for (const auto& each : alone.get_object()) worst = std::max(worst, number(each.value()).value_or(0));
        sensitivity.emplace_back(name, worst);
      }
      error.emplace_back(name, number(member(tensor, "output_error"))
                                   .value_or(number(member(tensor, "weight_error")).value_or(0)));
      std::vector<std::string> row;
      for (const char* key :
           {"tensor", "format", "bits_per_weight", "weight_error", "output_error", "kl_divergence_alone"})
        row.push_back(cell(member(tensor, key)));
      lines.push_back(std::move(row));
    }
    body += fmt::format("<h2>Quantization: {} bits a weight</h2>\n",
                        cell(member(value.as_object(), "bits_per_weight")));
    if (!sensitivity.empty())
      body +=
          "<p>KL divergence from the unrounded model with this matrix alone in its smallest format</p>\n" +
          bars(sensitivity);
    body +=
        "<p>Relative error of each matrix's output on the text, or of its weights where no text was "
        "used</p>\n" +
        bars(error);
    body +=
        "<details><summary>All matrices</summary>" +
        table({"matrix", "format", "bits", "weight error", "output error", "KL divergence alone"}, lines) +
        "</details>\n";
  }
  for (const json::value& value : list(member(report, "sparsified"))) {
    std::vector<std::pair<std::string, double>> shares;
    for (const json::value& line : list(member(value.as_object(), "tensors")))
      shares.emplace_back(text(member(line.as_object(), "tensor")),
                          number(member(line.as_object(), "sparsity")).value_or(0));
    body += fmt::format(
        "<h2>Zeros: {} of the matrices</h2>\n<details><summary>Each matrix</summary>{}</details>\n",
        cell(member(value.as_object(), "sparsity")), bars(shares));
  }

  for (const json::value& value : list(member(report, "samples"))) {
    std::vector<std::vector<std::string>> lines;
    bool teacher = false;
    for (const json::value& line : list(member(value.as_object(), "texts"))) {
      const json::object& one = line.as_object();
      teacher |= !member(one, "teacher").is_null();
      lines.push_back({"<pre>" + cell(member(one, "prompt")) + "</pre>",
                       "<pre>" + cell(member(one, "student")) + "</pre>",
                       "<pre>" + cell(member(one, "teacher")) + "</pre>"});
    }
    if (!teacher)
      for (auto& line : lines) line.pop_back();
    std::vector<std::string> head{"prompt", "student"};
    if (teacher) head.push_back("teacher");
    body += fmt::format("<h2>Samples of {}</h2>\n", cell(member(value.as_object(), "label"))) +
            table(head, lines);
  }
  return page("Run " + text(member(report, "folder")), body);
}

json::array comparison(const std::vector<json::object>& reports) {
  json::array out;
  for (const json::object& report : reports)
    for (const json::value& value : list(member(report, "artifacts"))) {
      const json::object& artifact = value.as_object();
      json::object row{{"run", member(report, "folder")}};
      for (const char* key : {"label", "file", "format", "parameters", "bytes", "bits_per_weight"})
        row[key] = member(artifact, key);
      for (const json::value& judged : list(member(report, "evaluations")))
        if (member(judged.as_object(), "file") == member(artifact, "file"))
          for (const std::string& figure : kFigures) row[figure] = member(judged.as_object(), figure);
      out.push_back(std::move(row));
    }
  return out;
}

namespace {
std::vector<std::string> columns_of(const json::array& rows) {
  std::vector<std::string> out{"run", "file", "label", "format", "parameters", "bytes", "bits_per_weight"};
  for (const std::string& figure : kFigures)
    if (std::any_of(rows.begin(), rows.end(),
                    [&](const json::value& row) { return !member(row.as_object(), figure).is_null(); }))
      out.push_back(figure);
  return out;
}
}  // namespace

std::string comparison_table(const json::array& rows) {
  const std::vector<std::string> columns = columns_of(rows);
  std::vector<std::vector<std::string>> cells{columns};
  for (const json::value& row : rows) {
    cells.emplace_back();
    for (const std::string& column : columns) {
      const json::value& value = member(row.as_object(), column);
      cells.back().push_back(value.is_string() ? text(value) : number(value) ? rounded(*number(value)) : "-");
    }
  }
  std::string out;
  for (const auto& line : cells) {
    for (std::size_t i = 0; i < columns.size(); ++i) {
      std::size_t width = 0;
      for (const auto& other : cells) width = std::max(width, other[i].size());
      out += i == 0 ? fmt::format("{:<{}}", line[i], width) : fmt::format("  {:<{}}", line[i], width);
    }
    out.erase(out.find_last_not_of(' ') + 1);
    out += '\n';
  }
  return out;
}

std::string comparison_html(const json::array& rows, const std::vector<json::object>& reports) {
  const std::vector<std::string> columns = columns_of(rows);
  std::vector<std::vector<std::string>> cells;
  for (const json::value& row : rows) {
    cells.emplace_back();
    for (const std::string& column : columns) cells.back().push_back(cell(member(row.as_object(), column)));
  }
  std::string body = table(columns, cells);
  static const std::vector<std::string> kColours{"#4477aa", "#cc6677", "#228833", "#ccbb44",
                                                 "#66ccee", "#aa3377", "#888888"};
  std::vector<Curve> curves;
  std::string names;
  for (const json::object& report : reports)  // the longest training of each run
    for (const json::value& pass : list(member(report, "passes"))) {
      Curve curve{text(member(report, "folder")), kColours[curves.size() % kColours.size()], {}};
      for (const json::value& point : list(member(pass.as_object(), "loss")))
        curve.points.emplace_back(point.as_array()[0].to_number<double>(),
                                  point.as_array()[1].to_number<double>());
      if (curve.points.size() < 2) continue;
      if (!curves.empty() && curves.back().name == curve.name) {
        if (curves.back().points.size() < curve.points.size())
          curve.colour = curves.back().colour, curves.back() = std::move(curve);
        continue;
      }
      names += fmt::format(" <span style=\"color:{}\">{}</span>", curve.colour, escaped(curve.name));
      curves.push_back(std::move(curve));
    }
  if (!curves.empty())
    body += "<h2>Training loss of each run's longest pass</h2><p>" + names + "</p>\n" + chart(curves);
  return page("Comparison", body);
}

}  // namespace retort
