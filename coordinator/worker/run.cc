#include "coordinator/worker/run.h"

#include <ATen/Context.h>
#include <unistd.h>

#include <algorithm>
#include <iostream>

#include "common/core/clock.h"
#include "common/core/file.h"
#include "common/core/sha256.h"
#include "common/core/units.h"
#include "common/hf/classifier_model.h"
#include "common/hf/hf_model.h"
#include "common/process/process.h"
#include "coordinator/worker/blas.h"
#include "coordinator/worker/recipe_run.h"

namespace retort {

std::atomic<bool> run_interrupted{false};

namespace {

namespace fs = std::filesystem;

constexpr double kSlowBlas = 20e9;
/// Share of the matrix product's rate that whole training steps reach (measured on two cores: 90 of 180
/// GFLOP/s).
constexpr double kTrainingShare = 0.5;

std::uint64_t free_memory() {
  std::uint64_t limit = memory_allowance_bytes();
  if (const auto text = read_file("/proc/meminfo", 1 << 16)) {
    const std::size_t at = text->find("MemAvailable:");
    if (at != std::string::npos)
      limit = std::min<std::uint64_t>(limit, std::stoull(text->substr(at + 13)) * 1024);
  }
  return limit;
}

json::object error_object(const Error& error) {
  return {{"code", to_string(error.code)}, {"message", error.message}, {"where", error.where}};
}

Result<void> write_result(const RunOptions& options, std::string_view state, const Error* error,
                          const json::array& artifacts, const std::string& recipe_sha256, double seconds) {
  const json::object result{
      {"state", state},
      {"error", error != nullptr ? json::value(error_object(*error)) : json::value(nullptr)},
      {"artifacts", artifacts},
      {"recipe_sha256", recipe_sha256},
      {"seconds", seconds}};
  return write_file_atomic(options.out / "result.json", pretty_json(result));
}

Result<void> check_memory(const Plan& plan, const RunOptions& options, const std::string& where) {
  const std::uint64_t limit = options.memory_limit.value_or(free_memory());
  if (plan.peak_bytes <= limit) return {};
  return fail(
      ErrorCode::kOutOfBudget, where,
      "this recipe needs about {} of memory ({} bytes), and there are {}; make batch_tokens or the context "
      "smaller, or give --memory-limit where more is free",
      format_bytes(plan.peak_bytes), plan.peak_bytes, format_bytes(limit));
}

std::unique_ptr<RecipeRun> make_run(const RunOptions& options, Recipe recipe, Progress& progress) {
  return recipe.task == Task::kClassification ? make_classifier_run(options, std::move(recipe), progress)
                                              : make_language_run(options, std::move(recipe), progress);
}

/// Prints the plan; refuses what does not fit.
Result<void> dry_run(const RunOptions& options) {
  SystemClock clock;
  Progress progress(clock, {});
  Recipe recipe = RETORT_TRY(read_recipe(options.recipe));
  const std::string where = recipe.where;
  const std::unique_ptr<RecipeRun> run = make_run(options, std::move(recipe), progress);
  const Plan plan = RETORT_TRY(run->prepare());
  const double rate = matrix_product_rate() * kTrainingShare;
  std::cout << (options.json ? pretty_json(to_json(plan, rate)) : to_table(plan, rate));
  std::cout.flush();
  return check_memory(plan, options, where);
}

}  // namespace

int run_recipe(const RunOptions& options) {
  const auto complain = [](const Error& error) {
    std::cerr << "retort-worker: " << error.describe() << std::endl;
    return exit_code(error.code);
  };
  if (options.dry_run) {
    const auto done = dry_run(options);
    return done ? 0 : complain(done.error());
  }
  if (const auto made = make_folders(options.out); !made) return complain(made.error());
  const auto lock = FileLock::take(options.out / "worker.lock");
  if (!lock) return complain(lock.error());
  std::error_code ignored;
  // What another run has left here stays as it is, whatever is wrong with this one.
  bool ours = !fs::exists(options.out / "state.json", ignored);
  const bool succeeded =
      read_file(options.out / "result.json").value_or("").find("\"succeeded\"") != std::string::npos;
  SystemClock clock;
  Progress progress(clock, options.out / "progress.jsonl", !options.json && ::isatty(STDOUT_FILENO) == 1);
  std::string recipe_sha256;
  std::unique_ptr<RecipeRun> run;
  bool nothing_left = false;
  const auto work = [&]() -> Result<void> {
    Recipe recipe = RETORT_TRY(read_recipe(options.recipe));
    recipe_sha256 = recipe.sha256;
    const bool gpu = RETORT_TRY(trains_on_gpu(options.device));
    const std::string where = recipe.where;
    run = make_run(options, std::move(recipe), progress);
    const Plan plan = RETORT_TRY(run->prepare());
    if (const auto opened = run->open(); !opened) {
      ours |= opened.error().code == ErrorCode::kCorrupt && !succeeded;
      return opened;
    }
    nothing_left = succeeded && run->finished();
    if (nothing_left) return run->check_artifacts();
    ours = true;
    fs::remove(options.out / "result.json", ignored);
    const double rate = matrix_product_rate();
    if (rate < kSlowBlas)
      progress.warning(
          fmt::format("matrix products run at only {:.1f} GFLOP/s: install libopenblas0-openmp, training "
                      "is 20 to 30 times faster with it",
                      rate / 1e9));
    RETORT_TRY(check_memory(plan, options, where));
    json::object told = to_json(plan, rate * kTrainingShare);
    told["device"] = gpu ? "cuda" : "cpu";
    progress.emit("plan", told);
    for (const std::string& warning : plan.warnings) progress.warning(warning);
    return run->execute();
  };
  const Result<void> done = [&]() -> Result<void> {
    try {
      return work();
    } catch (const std::bad_alloc&) {
      return fail(ErrorCode::kOutOfBudget, "memory",
                  "the system has no more memory to give; make batch_tokens smaller");
    } catch (const std::exception& error) {  // LibTorch's, whose further lines tell where it was in itself
      std::string text = error.what();
      text = text.substr(0, text.find('\n'));
      return fail(text.find("alloc") != std::string::npos ? ErrorCode::kOutOfBudget : ErrorCode::kInternal,
                  run ? run->in_hand() : options.recipe.string(), "LibTorch: {}", text);
    }
  }();
  if (nothing_left && done) {
    std::cerr << "retort-worker: " << options.out.string() << " has all that this recipe makes\n";
    return 0;
  }
  const double seconds = run ? run->seconds() : 0;
  const json::array artifacts = run ? run->artifacts() : json::array();
  if (done) {
    if (const auto written = write_result(options, "succeeded", nullptr, artifacts, recipe_sha256, seconds);
        !written)
      return complain(on_disk(written).error());
    progress.emit("done", {{"state", "succeeded"}, {"artifacts", artifacts.size()}, {"seconds", seconds}});
    return 0;
  }
  const Error& error = done.error();
  progress.clear_bar();
  if (run_interrupted) {
    std::cerr << "retort-worker: interrupted; run the same command to go on\n";
    return 130;
  }
  if (error.code == ErrorCode::kUnavailable) return complain(error);  // no result: it goes on later
  if (error.code == ErrorCode::kConflict || !ours) return complain(error);
  const bool cancelled = error.code == ErrorCode::kCancelled;
  progress.emit("error", error_object(error));
  if (const auto written = write_result(options, cancelled ? "cancelled" : "failed", &error, artifacts,
                                        recipe_sha256, seconds);
      !written)
    std::cerr << "retort-worker: " << written.error().describe() << "\n";
  progress.emit("done", {{"state", cancelled ? "cancelled" : "failed"}, {"seconds", seconds}});
  return complain(error);
}

Result<void> on_disk(Result<void> written) {
  if (written || written.error().code != ErrorCode::kOutOfBudget) return written;
  return fail(ErrorCode::kUnavailable, written.error().where,
              "{}; what was written before is whole: make room and run again", written.error().message);
}

Result<std::string> weights_sha256(const fs::path& folder) {
  if (fs::exists(folder / "model.safetensors")) return sha256_file_hex(folder / "model.safetensors");
  std::vector<fs::path> shards;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.path().extension() == ".safetensors") shards.push_back(entry.path());
  std::sort(shards.begin(), shards.end());
  std::string all;
  for (const fs::path& shard : shards) all += RETORT_TRY(sha256_file_hex(shard));
  return sha256_hex(all);
}

Result<std::string> model_sha256(const fs::path& folder, const std::string& weights) {
  return sha256_hex(weights + RETORT_TRY(sha256_file_hex(folder / "config.json")));
}

Result<void> inspect_model(const fs::path& folder) {
  if (is_classifier_type(RETORT_TRY(model_type_of(folder)))) {
    const ClassifierModel model = RETORT_TRY(open_classifier_model(folder));
    Network shape;
    shape.classifier = model.config;
    std::cout << pretty_json(json::object{{"family", to_string(model.config.family)},
                                          {"parameters", parameter_count(model.config)},
                                          {"shape", describe(shape)},
                                          {"labels", json::value_from(model.config.labels)},
                                          {"weights_sha256", RETORT_TRY(weights_sha256(folder))}});
    return {};
  }
  const HfModel model = RETORT_TRY(open_hf_model(folder));
  json::array layers;
  for (const LayerShape& layer : model.config.layers)
    layers.push_back(
        json::object{{"heads", layer.n_head}, {"kv_heads", layer.n_head_kv}, {"ffn", layer.n_ff}});
  json::object out{{"family", to_string(model.config.family)},
                   {"parameters", parameter_count(model.config)},
                   {"vocabulary", model.config.n_vocab},
                   {"context", model.config.n_ctx},
                   {"hidden", model.config.n_embd},
                   {"head_dim", model.config.head_dim},
                   {"layers", std::move(layers)},
                   {"tied_embeddings", model.config.tied_embeddings},
                   {"weights_sha256", RETORT_TRY(weights_sha256(folder))}};
  if (const auto& labels = model.config.encoder.labels; !labels.empty())
    out["labels"] = json::value_from(labels);
  if (model.config.encoder.mlm_head) out["head"] = "masked language model";
  std::cout << pretty_json(out);
  return {};
}

Result<bool> trains_on_gpu(const std::string& name) {
  const bool there = name != "cpu" && at::globalContext().hasCUDA();
  if (name == "cuda" && !there)
    return fail(ErrorCode::kUnavailable, "--device cuda",
                "this program's LibTorch has no CUDA, or sees no GPU; --device cpu goes without");
  return there;
}

Result<void> check_blas(int threads) {
  const double rate = matrix_product_rate();
  std::cout << pretty_json(
      json::object{{"gflops", rate / 1e9}, {"threads", threads}, {"fast", rate >= kSlowBlas}});
  if (rate >= kSlowBlas) return {};
  return fail(ErrorCode::kUnavailable, "BLAS",
              "a 512×512 product runs at {:.1f} GFLOP/s, below {:.0f}: install libopenblas0-openmp",
              rate / 1e9, kSlowBlas / 1e9);
}

}  // namespace retort
