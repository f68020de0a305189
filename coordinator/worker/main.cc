#include <unistd.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdlib>
#include <iostream>

#include "common/core/file.h"
#include "common/core/units.h"
#include "common/process/process.h"
#include "coordinator/worker/blas.h"
#include "coordinator/worker/report.h"
#include "coordinator/worker/run.h"

namespace {

constexpr const char* kExamples = R"(Examples:
  retort-worker run recipe.yaml --dry-run          what it would do, need and take
  retort-worker run recipe.yaml --out work/cut     do it; run it again to go on after an interruption
  touch work/cut/cancel                            stop it at the next step, as cancelled
  retort-worker inspect teachers/babyllama         is this Hugging Face folder one we can work on?
  retort-worker report work/cut                    work/cut/report.html and report.json of a run
  retort-worker compare work/cut work/other        the files that runs made, side by side
  retort-worker check-blas                         is the matrix library a fast one?
Recipes: docs/recipes.md)";

void on_signal(int) { retort::run_interrupted = true; }

/// A file that is mapped is read beyond its end: someone else has made it shorter.
void on_bus_error(int) {
  constexpr std::string_view kMessage =
      "retort-worker: a file that is being read, of the teacher or of the data, was made shorter meanwhile; "
      "put it "
      "back and run again\n";
  (void)!::write(STDERR_FILENO, kMessage.data(), kMessage.size());
  ::_exit(retort::exit_code(retort::ErrorCode::kUnavailable));
}

retort::Result<void> write_reports(const std::vector<std::filesystem::path>& folders, bool one,
                                   const std::filesystem::path& html, const std::filesystem::path& json) {
  std::vector<retort::json::object> reports;
  for (const auto& folder : folders) reports.push_back(RETORT_TRY(retort::run_report(folder)));
  const retort::json::array rows = retort::comparison(reports);
  std::cout << retort::comparison_table(rows);
  if (!json.empty())
    RETORT_TRY(retort::write_file_atomic(
        json, one ? retort::pretty_json(reports[0]) : retort::pretty_json(rows), 0644));
  if (!html.empty())
    RETORT_TRY(retort::write_file_atomic(
        html, one ? retort::report_html(reports[0]) : retort::comparison_html(rows, reports), 0644));
  for (const auto& written : {html, json})
    if (!written.empty()) std::cout << "wrote " << written.string() << "\n";
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"retort-worker: makes a smaller student of a teacher, by a recipe"};
  app.footer(kExamples);
  app.set_version_flag("--version", "retort-worker " RETORT_VERSION);
  app.require_subcommand(1);

  retort::RunOptions options;
  int threads = 0;
  std::string memory, cache_limit;
  auto* plan = app.add_subcommand("dry-run", "print the plan of a recipe, do nothing: run --dry-run");
  plan->footer(kExamples);
  plan->add_option("RECIPE", options.recipe, "the recipe, YAML")->required();
  plan->add_option("--threads", threads, "CPU threads (default: the cores we may use)")
      ->check(CLI::Range(1, 1024));
  plan->add_option("--memory-limit", memory, "refuse what needs more (default: what is free)");
  plan->add_flag("--json", options.json, "the plan as JSON");
  auto* run = app.add_subcommand("run", "run a recipe, or go on with it");
  run->footer(kExamples);
  run->add_option("RECIPE", options.recipe, "the recipe, YAML")->required();
  auto* out = run->add_option("--out", options.out, "folder for results, checkpoints and progress");
  run->add_option("--threads", threads, "CPU threads (default: the cores we may use)")
      ->check(CLI::Range(1, 1024));
  run->add_option("--device", options.device,
                  "where training runs: auto (a GPU where there is one), cpu, cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  run->add_option("--memory-limit", memory,
                  "refuse what needs more, for example 4GiB (default: what is free)");
  run->add_option("--serve-binary", options.serve_binary, "retort-serve, which judges exported files");
  auto* cache = run->add_option("--cache", options.cache,
                                "folder where teachers' outputs are kept, for all runs over the same text");
  run->add_option("--cache-limit", cache_limit, "what that folder may hold (default: 8GiB)")->needs(cache);
  run->add_flag("--dry-run", options.dry_run, "print the plan, do nothing");
  run->add_flag(
      "--json", options.json,
      "events as JSON lines on a terminal too, as everywhere else; with --dry-run the plan as JSON");

  std::filesystem::path folder;
  auto* inspect = app.add_subcommand("inspect", "check a Hugging Face folder and describe it as JSON");
  inspect->add_option("DIR", folder, "a model's folder: config.json, model.safetensors, tokenizer.json")
      ->required();
  std::filesystem::path html, report_json;
  auto* report =
      app.add_subcommand("report", "write a run's report: loss curves, sensitivities, samples, results");
  report->add_option("DIR", folder, "output folder of a run")->required();
  report->add_option("--html", html, "the page (default: DIR/report.html)");
  report->add_option("--json", report_json, "the same as JSON (default: DIR/report.json)");
  std::vector<std::filesystem::path> folders;
  auto* compare = app.add_subcommand("compare", "the files that runs made, side by side");
  compare->add_option("DIR", folders, "output folders of runs")->required();
  compare->add_option("--html", html, "write a page as well");
  compare->add_option("--json", report_json, "write JSON as well");
  auto* blas = app.add_subcommand("check-blas", "measure matrix products");
  blas->add_option("--threads", threads)->check(CLI::Range(1, 1024));

  try {
    app.parse(argc, argv);
    if (run->parsed() && !options.dry_run && out->empty())
      throw CLI::RequiredError("--out (the folder for results)");
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  for (const auto& [name, text] : {std::pair{"--memory-limit", &memory}, {"--cache-limit", &cache_limit}}) {
    if (text->empty()) continue;
    const auto bytes = retort::parse_bytes(*text);
    if (!bytes) {
      std::cerr << "retort-worker: " << name << ": " << bytes.error().describe() << "\n";
      return 2;
    }
    if (text == &memory)
      options.memory_limit = *bytes;
    else
      options.cache_limit = *bytes;
  }
  if (report->parsed() || compare->parsed()) {
    if (report->parsed()) {
      folders = {folder};
      if (html.empty()) html = folder / "report.html";
      if (report_json.empty()) report_json = folder / "report.json";
    }
    const auto written = write_reports(folders, report->parsed(), html, report_json);
    if (written) return 0;
    std::cerr << "retort-worker: " << written.error().describe() << "\n";
    return retort::exit_code(written.error().code);
  }
  if (threads == 0) threads = std::max(1, static_cast<int>(retort::cpu_allowance()));
  options.threads = threads;
  retort::settle_process(threads, argv);

  struct sigaction action {};
  action.sa_handler = on_signal;
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
  ::signal(SIGBUS, on_bus_error);

  options.dry_run |= plan->parsed();
  if (run->parsed() || plan->parsed()) return retort::run_recipe(options);
  const retort::Result<void> done =
      inspect->parsed() ? retort::inspect_model(folder) : retort::check_blas(threads);
  if (done) return 0;
  std::cerr << "retort-worker: " << done.error().describe() << "\n";
  return retort::exit_code(done.error().code);
}
