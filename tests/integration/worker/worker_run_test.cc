// The real retort-worker on tiny random models: whole runs, interruption, refusal.
#include <fcntl.h>
#include <pty.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "common/core/json.h"
#include "common/core/random.h"
#include "common/core/sha256.h"
#include "common/gguf/gguf.h"
#include "common/hf/classifier_model.h"
#include "common/hf/hf_model.h"
#include "coordinator/tailor/tailor.h"
#include "tests/support/support.h"
#include "tests/support/tiny_model.h"

namespace retort {
namespace {

namespace fs = std::filesystem;

constexpr const char* kPasses = R"(passes:
  - prune.structured: {layers: 1, ffn: 64, heads: 2, kv_heads: 1, calibration_tokens: 512}
  - export: {file: cut.gguf, format: F16, label: "cut only"}
  - distil.soft: {tokens: 40000, batch_tokens: 512, learning_rate: 1e-3, checkpoint_seconds: 1}
  - quantize.weights: {format: Q8_0}
  - export: {file: student.gguf, label: distilled, hf: true}
)";

std::string text_of(const json::value& value) { return std::string(value.as_string()); }

class WorkerRun : public ::testing::Test {
 protected:
  struct Ended {
    int status = -1;  ///< exit status, or 128 + signal
    std::string out, err;
  };

  void SetUp() override {
    testing::TinyModelOptions teacher;
    teacher.n_layer = 3;
    ASSERT_OK(testing::write_tiny_model(folder_ / "teacher", ModelFamily::kLlama, 1, teacher));
    ASSERT_OK(write_file_atomic(folder_ / "train.jsonl", testing::tiny_corpus_jsonl(300, 1)));
    recipe(kPasses);
  }
  void recipe(const std::string& passes, const std::string& data = "data: {train: {file: train.jsonl}}\n") {
    ASSERT_OK(write_file_atomic(folder_ / "r.yaml",
                                "version: 1\nseed: 7\nteacher: {model: teacher}\n" + data + passes));
  }
  /// Writes examples to learn from and to be judged by; the beginning of a recipe that names them.
  std::string classification_of(const std::string& train, const std::string& held_out) {
    EXPECT_OK(write_file_atomic(folder_ / "n.jsonl", train));
    EXPECT_OK(write_file_atomic(folder_ / "h.jsonl", held_out));
    return "version: 1\ntask: classification\nseed: 3\ndata: {train: {file: n.jsonl}, held_out: {file: "
           "h.jsonl}}\n";
  }
  pid_t start(const std::string& out, std::vector<std::string> more = {}, rlim_t file_limit = RLIM_INFINITY,
              int terminal = -1) {
    std::vector<std::string> words{testing::binary("retort-worker").string(), "run",
                                   (folder_ / "r.yaml").string(), "--threads", "1"};
    if (!out.empty()) words.insert(words.end(), {"--out", (folder_ / out).string()});
    words.insert(words.end(), more.begin(), more.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    const std::string out_file = folder_ / "stdout", err_file = folder_ / "stderr";
    const pid_t child = ::fork();
    if (child != 0) return child;
    ::dup2(::open(out_file.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), 1);
    if (terminal >= 0) ::dup2(terminal, 1);
    ::dup2(::open(err_file.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), 2);
    if (file_limit != RLIM_INFINITY) {
      const rlimit limit{file_limit, file_limit};
      ::setrlimit(RLIMIT_FSIZE, &limit);
      ::signal(SIGXFSZ, SIG_IGN);
    }
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  Ended finish(pid_t child) {
    int status = 0;
    ::waitpid(child, &status, 0);
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), *read_file(folder_ / "stdout"),
            *read_file(folder_ / "stderr")};
  }
  Ended run(const std::string& out, std::vector<std::string> more = {}) {
    return finish(start(out, std::move(more)));
  }
  json::object result(const std::string& out) {
    return json::parse(*read_file(folder_ / out / "result.json")).as_object();
  }
  std::vector<json::object> events(const std::string& out, std::string_view of) {
    std::vector<json::object> found;
    const std::string text = read_file(folder_ / out / "progress.jsonl").value_or("");
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t end = text.find('\n', at);
      if (end == std::string::npos) break;
      json::object line = json::parse(text.substr(at, end - at)).as_object();
      if (text_of(line.at("event")) == of) found.push_back(std::move(line));
      at = end + 1;
    }
    return found;
  }
  std::string hash(const std::string& file) {
    return sha256_file_hex(folder_ / file).value_or("absent: " + file);
  }
  /// Waits until the distillation has got to `step`; false when the run ends before.
  bool reached(const std::string& out, std::uint64_t step, pid_t child) {
    for (int i = 0; i < 6000; ++i) {
      const auto told = events(out, "progress");
      if (!told.empty() && told.back().at("step").to_number<std::uint64_t>() >= step) return true;
      siginfo_t info{};
      if (::waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
          info.si_pid == child)
        return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return false;
  }

  testing::TemporaryFolder folder_;
};

TEST_F(WorkerRun, WholeRecipe) {
  const Ended ended = run("o");
  ASSERT_EQ(ended.status, 0) << ended.err;
  const json::object done = result("o");
  EXPECT_EQ(text_of(done.at("state")), "succeeded");
  ASSERT_EQ(done.at("artifacts").as_array().size(), 2u);
  const json::object& student = done.at("artifacts").as_array()[1].as_object();
  EXPECT_EQ(text_of(student.at("sha256")), hash("o/student.gguf"));
  EXPECT_EQ(text_of(student.at("format")), "Q8_0");
  EXPECT_EQ(student.at("bytes").to_number<std::uint64_t>(), fs::file_size(folder_ / "o" / "student.gguf"));
  const auto file = GgufFile::open(folder_ / "o" / "student.gguf");
  ASSERT_OK(file);
  const auto config = read_gguf_config(*file);
  ASSERT_OK(config);
  EXPECT_EQ(config->layers, (std::vector<LayerShape>{{2, 1, 64}}));
  for (const char* key : {"retort.teacher.sha256", "retort.recipe.sha256", "retort.data.sha256"})
    EXPECT_EQ(file->text(key).value_or("").size(), 64u) << key;
  EXPECT_OK(open_hf_model(folder_ / "o" / "student"));
  const auto told = events("o", "progress");
  ASSERT_GE(told.size(), 2u);
  EXPECT_LT(told.back().at("loss").to_number<double>(), told.front().at("loss").to_number<double>());
  EXPECT_EQ(told.back().at("step"), told.back().at("steps"));
  EXPECT_EQ(events("o", "pass_start").size(), 5u);
  EXPECT_EQ(events("o", "done").size(), 1u);
  EXPECT_EQ(run("o").status, 0);  // finished passes are not done again
  EXPECT_EQ(events("o", "pass_start").size(), 5u);
}

TEST_F(WorkerRun, KilledAtAnyMomentEndsInTheSameFile) {
  ASSERT_EQ(run("whole").status, 0);
  const std::string wanted = hash("whole/student.gguf");
  // Early in the distillation, then at moments that fall anywhere (start, checkpoint, export).
  pid_t child = start("broken");
  ASSERT_TRUE(reached("broken", 1, child));
  ::kill(child, SIGKILL);
  EXPECT_EQ(finish(child).status, 128 + SIGKILL);
  for (const int millis : {150, 900, 1700, 400}) {
    child = start("broken");
    std::this_thread::sleep_for(std::chrono::milliseconds(millis));
    ::kill(child, SIGKILL);
    finish(child);
  }
  const Ended ended = run("broken");
  ASSERT_EQ(ended.status, 0) << ended.err;
  EXPECT_EQ(hash("broken/student.gguf"), wanted);
  EXPECT_EQ(hash("broken/cut.gguf"), hash("whole/cut.gguf"));
}

TEST_F(WorkerRun, TerminatedWritesACheckpointAndGoesOnThere) {
  ASSERT_EQ(run("whole").status, 0);
  pid_t child = start("o");
  ASSERT_TRUE(reached("o", 1, child));
  ::kill(child, SIGTERM);
  const Ended ended = finish(child);
  EXPECT_EQ(ended.status, 130) << ended.err;
  EXPECT_FALSE(fs::exists(folder_ / "o" / "result.json"));
  ASSERT_EQ(run("o").status, 0);
  const auto starts = events("o", "pass_start");
  bool resumed = false;
  for (const json::object& pass : starts)
    resumed |= text_of(pass.at("pass")) == "distil.soft" &&
               pass.at("resumed_at_step").to_number<std::uint64_t>() >= 1;
  EXPECT_TRUE(resumed);
  EXPECT_EQ(hash("o/student.gguf"), hash("whole/student.gguf"));
}

TEST_F(WorkerRun, Cancel) {
  recipe("passes:\n  - distil.soft: {tokens: 50000000, batch_tokens: 256}\n  - export: {file: s.gguf}\n");
  const pid_t child = start("o");
  ASSERT_TRUE(reached("o", 1, child));
  ASSERT_OK(write_file_atomic(folder_ / "o" / "cancel", ""));
  EXPECT_NE(finish(child).status, 0);
  EXPECT_EQ(text_of(result("o").at("state")), "cancelled");
}

TEST_F(WorkerRun, RefusesWhatDoesNotFitBeforeItStarts) {
  const Ended dry = run("", {"--dry-run", "--memory-limit", "100MiB"});
  EXPECT_EQ(dry.status, 4);
  EXPECT_NE(dry.err.find("bytes"), std::string::npos) << dry.err;
  EXPECT_NE(dry.out.find("prune.structured"), std::string::npos) << dry.out;
  const Ended ended = run("o", {"--memory-limit", "100MiB"});
  EXPECT_EQ(ended.status, 4);
  EXPECT_EQ(text_of(result("o").at("error").at("code")), "out_of_budget");
  EXPECT_TRUE(events("o", "pass_start").empty());
}

TEST_F(WorkerRun, DryRunPredictsTheFile) {
  const Ended dry = run("", {"--dry-run", "--json"});
  ASSERT_EQ(dry.status, 0) << dry.err;
  const json::value plan = json::parse(dry.out);
  ASSERT_EQ(run("o").status, 0);
  const double predicted = plan.at("passes").as_array()[4].at("file_bytes").to_number<double>();
  const double real = static_cast<double>(fs::file_size(folder_ / "o" / "student.gguf"));
  EXPECT_NEAR(predicted / real, 1, 0.15);
}

TEST_F(WorkerRun, BadInputIsExplained) {
  recipe("passes:\n  - distil.soft: {token: 5}\n  - export: {file: s.gguf}\n");
  Ended ended = run("a");
  EXPECT_EQ(ended.status, 3);
  EXPECT_NE(ended.err.find("r.yaml:6"), std::string::npos) << ended.err;
  EXPECT_NE(ended.err.find("did you mean 'tokens'"), std::string::npos) << ended.err;
  EXPECT_EQ(text_of(result("a").at("state")), "failed");

  recipe(kPasses);
  ASSERT_OK(write_file_atomic(folder_ / "train.jsonl", "\n"));
  ended = run("b");
  EXPECT_EQ(ended.status, 3);
  EXPECT_NE(ended.err.find("holds no documents"), std::string::npos) << ended.err;
}

/// Sequence-level: the student learns what the teacher wrote, which is written once, for this run or for all
/// that share a cache; killed in between, it ends in the same bytes.
TEST_F(WorkerRun, LearnsFromWhatItsTeacherWrote) {
  recipe(
      "passes:\n  - prune.structured: {layers: 1, heads: 2, kv_heads: 1}\n"
      "  - distil.sequence: {tokens: 4096, batch_tokens: 256, checkpoint_seconds: 1}\n"
      "  - distil: {tokens: 16384, batch_tokens: 256, attention: 1, checkpoint_seconds: 1}\n"
      "  - export: {file: student.gguf}\n");
  ASSERT_EQ(run("o").status, 0);
  const auto told = events("o", "teacher_outputs");
  ASSERT_EQ(told.size(), 1u);
  EXPECT_GT(told[0].at("windows_computed").to_number<int>(), 0);
  EXPECT_TRUE(fs::exists(folder_ / "o" / "written"));
  for (const char* out : {"one", "two"})
    ASSERT_EQ(run(out, {"--cache", (folder_ / "cache").string()}).status, 0);
  EXPECT_EQ(events("one", "teacher_outputs").at(0).at("windows_computed"), told[0].at("windows_computed"));
  EXPECT_EQ(events("two", "teacher_outputs").at(0).at("windows_computed").to_number<int>(), 0);
  EXPECT_FALSE(fs::exists(folder_ / "two" / "written"));
  EXPECT_EQ(hash("one/student.gguf"), hash("o/student.gguf"));
  EXPECT_EQ(hash("two/student.gguf"), hash("o/student.gguf"));

  const pid_t child = start("killed");
  for (int i = 0; i < 6000 && events("killed", "pass_start").size() < 3; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  ::kill(child, SIGTERM);  // in the last distillation, which has to know which heads were left
  ASSERT_EQ(finish(child).status, 130);
  ASSERT_EQ(run("killed").status, 0);
  EXPECT_EQ(hash("killed/student.gguf"), hash("o/student.gguf"));
}

/// What the text is judged on is the same in training and of a file.
TEST_F(WorkerRun, FilesAreJudgedByTheDocumentsThatTheRecipeNames) {
  if (!fs::exists(testing::binary("retort-serve"))) GTEST_SKIP() << "retort-serve is not built";
  recipe("passes:\n  - evaluate: {label: now}\n  - export: {file: s.gguf, format: F32}\n",
         "data: {held_out: {file: train.jsonl, limit_documents: 5}}\n");
  ASSERT_EQ(run("o").status, 0);
  const auto judged = events("o", "evaluation");
  ASSERT_EQ(judged.size(), 2u);
  EXPECT_EQ(judged[0].at("tokens"), judged[1].at("tokens"));
}

/// A config.json makes another model of the same weights.
TEST_F(WorkerRun, ACacheAndARunAreOfOneConfigToo) {
  recipe(
      "passes:\n  - distil.soft: {tokens: 2048, batch_tokens: 256, teacher_outputs: top_k}\n"
      "  - export: {file: s.gguf}\n");
  const std::vector<std::string> cache{"--cache", (folder_ / "cache").string()};
  ASSERT_EQ(run("a", cache).status, 0);
  std::string config = *read_file(folder_ / "teacher/config.json");
  json::object changed = json::parse(config).as_object();
  changed["rope_theta"] = 77.0;
  config = json::serialize(changed);
  ASSERT_OK(write_file_atomic(folder_ / "teacher/config.json", config));
  ASSERT_EQ(run("b", cache).status, 0);
  EXPECT_GT(events("b", "teacher_outputs").at(0).at("windows_computed").to_number<int>(), 0);
  const Ended again = run("a", cache);
  EXPECT_NE(again.status, 0);
  EXPECT_NE(again.err.find("another teacher"), std::string::npos) << again.err;
}

TEST_F(WorkerRun, AStateThatWasChangedIsRefusedAndLosesNothing) {
  recipe(
      "passes:\n  - distil.soft: {tokens: 131072, batch_tokens: 256, checkpoint_seconds: 1}\n"
      "  - export: {file: s.gguf}\n");
  const pid_t child = start("o");
  ASSERT_TRUE(reached("o", 3, child));
  ::kill(child, SIGTERM);
  ASSERT_EQ(finish(child).status, 130);
  const std::string whole = *read_file(folder_ / "o/state.json");
  const json::object written = json::parse(whole).as_object();
  const auto refused = [&](const json::object& changed) {
    EXPECT_OK(write_file_atomic(folder_ / "o/state.json", json::serialize(changed)));
    const Ended ended = run("o");
    EXPECT_NE(ended.status, 0) << changed;
    EXPECT_NE(ended.err.find("not what was written, or not by this version; empty the folder"),
              std::string::npos)
        << ended.err;
  };
  for (const auto& [key, value] :
       std::vector<std::pair<std::string, json::value>>{{"pass", 1},
                                                        {"step", 1000000000000000000},
                                                        {"checkpoint", "../r.yaml"},
                                                        {"threads", 7},
                                                        {"step", "2"},
                                                        {"least", json::object{{"loss", -5}}},
                                                        {"artifacts", json::array{5, "x"}}}) {
    json::object changed = written;
    changed[key] = value;
    refused(changed);
  }
  json::object changed = written;
  changed["least"].as_object()["nll"] = -5;
  refused(changed);
  changed.erase("check");
  refused(changed);
  ASSERT_OK(write_file_atomic(folder_ / "o/state.json", whole));
  const Ended ended = run("o");
  EXPECT_EQ(ended.status, 0) << ended.err;
}

TEST_F(WorkerRun, ATeacherThatIsCutShortMeanwhileIsAnError) {
  recipe(
      "passes:\n  - distil.soft: {tokens: 131072, batch_tokens: 256}\n  - quantize.weights: {format: Q8_0}\n"
      "  - evaluate: {label: now}\n  - export: {file: s.gguf}\n",
      "data: {train: {file: train.jsonl}, held_out: {file: train.jsonl, max_tokens: 100}}\n");
  const pid_t child = start("o");
  ASSERT_TRUE(reached("o", 3, child));
  fs::resize_file(folder_ / "teacher/model.safetensors", 1000);
  const Ended ended = finish(child);
  EXPECT_GT(ended.status, 0);
  EXPECT_LT(ended.status, 128) << "no signal";
  EXPECT_NE(ended.err.find("made shorter"), std::string::npos) << ended.err;
}

TEST_F(WorkerRun, AGpuThatIsNotThereIsSaid) {
  const Ended ended = run("o", {"--device", "cuda"});
  if (ended.status == 0) GTEST_SKIP() << "there is one";
  EXPECT_NE(ended.err.find("--device cpu"), std::string::npos) << ended.err;
  EXPECT_EQ(run("o", {"--device", "cpu"}).status, 0);
  EXPECT_EQ(text_of(events("o", "plan").at(0).at("device")), "cpu");
}

TEST_F(WorkerRun, WhatWasExportedBeforeAFailureIsTold) {
  ASSERT_OK(write_file_atomic(folder_ / "train.jsonl", "{\"text\": \"a\"}\n"));  // too little to calibrate by
  recipe(
      "passes:\n  - export: {file: before.gguf}\n"
      "  - quantize.weights: {format: Q4_0, method: importance}\n  - export: {file: after.gguf}\n");
  ASSERT_NE(run("o").status, 0);
  EXPECT_EQ(text_of(result("o").at("state")), "failed");
  const json::array artifacts = result("o").at("artifacts").as_array();
  ASSERT_EQ(artifacts.size(), 1u);
  EXPECT_EQ(text_of(artifacts[0].at("file")), "before.gguf");
}

TEST_F(WorkerRun, MissingJudgeIsAClearError) {
  recipe(kPasses, "data: {train: {file: train.jsonl}, held_out: {file: train.jsonl}}\n");
  const Ended ended = run("o", {"--serve-binary", (folder_ / "nothing").string()});
  EXPECT_NE(ended.status, 0);
  EXPECT_NE(ended.err.find("--serve-binary"), std::string::npos) << ended.err;
}

TEST_F(WorkerRun, JudgesWithTheRuntimeThatServes) {
  if (!fs::exists(testing::binary("retort-serve"))) GTEST_SKIP() << "retort-serve is not built";
  recipe("passes:\n  - evaluate: {label: in-training}\n  - export: {file: s.gguf, format: F32}\n",
         "data: {train: {file: train.jsonl}, held_out: {file: train.jsonl, max_tokens: 500}}\n");
  const Ended ended = run("o");
  ASSERT_EQ(ended.status, 0) << ended.err;
  const auto told = events("o", "evaluation");
  ASSERT_EQ(told.size(), 2u);
  const double here = told[0].at("perplexity").to_number<double>(),
               there = told[1].at("perplexity").to_number<double>();
  EXPECT_NEAR(there / here, 1, 1e-3);
  EXPECT_NEAR(told[1].at("kl_divergence").to_number<double>(), 0, 1e-3);
}

/// As the coordinator tailors: one corpus, two classes, one a cut and the other none, one cache.
TEST_F(WorkerRun, TheSecondClassOfACorpusPaysNoTeacherPass) {
  ASSERT_OK(write_file_atomic(folder_ / "judge.jsonl", testing::tiny_corpus_jsonl(3, 2)));
  const ModelConfig teacher = open_hf_model(folder_ / "teacher")->config;
  RecipeInputs inputs{.teacher_folder = folder_ / "teacher",
                      .train_file = folder_ / "train.jsonl",
                      .held_out_file = folder_ / "judge.jsonl",
                      .tokens = 6000,
                      .held_out_tokens = 50};
  const auto tailor = [&](const std::string& name, std::uint32_t ffn) {
    StudentPlan plan;
    plan.config = teacher;
    for (LayerShape& layer : plan.config.layers) layer.n_ff = ffn;
    plan.parameters = parameter_count(plan.config);
    inputs.base_name = name;
    EXPECT_OK(write_file_atomic(folder_ / "r.yaml", write_recipe({teacher, {}}, plan, inputs)));
    const Ended ended = run(name, {"--cache", (folder_ / "cache").string()});
    EXPECT_EQ(ended.status, 0) << ended.err;
    const auto told = events(name, "teacher_outputs");
    EXPECT_EQ(told.size(), 1u);
    return told.empty() ? json::object{{"windows_computed", -1}, {"windows_used", -1}} : told[0];
  };
  const json::object whole = tailor("whole", teacher.layers[0].n_ff), cut = tailor("cut", 32);
  EXPECT_GT(whole.at("windows_computed").to_number<int>(), 0);
  EXPECT_EQ(cut.at("windows_used"), whole.at("windows_used"));
  EXPECT_EQ(cut.at("windows_computed").to_number<int>(), 0);
  // Another teacher's outputs lie beside it and are not taken for its own.
  testing::TinyModelOptions other;
  other.n_layer = 3;
  fs::remove_all(folder_ / "teacher");
  ASSERT_OK(testing::write_tiny_model(folder_ / "teacher", ModelFamily::kLlama, 2, other));
  EXPECT_EQ(tailor("other", 32).at("windows_computed"), whole.at("windows_computed"));
}

TEST_F(WorkerRun, ReportsTellOfRuns) {
  if (!fs::exists(testing::binary("retort-serve"))) GTEST_SKIP() << "retort-serve is not built";
  ASSERT_OK(write_file_atomic(folder_ / "judge.jsonl", testing::tiny_corpus_jsonl(20, 9)));
  recipe(
      "passes:\n  - prune.unstructured: {sparsity: 0.3, calibration_tokens: 512}\n"
      "  - distil.soft: {tokens: 8000, batch_tokens: 256, evaluate_every: 10}\n"
      "  - quantize.weights: {bits: 9, candidates: [Q4_0, Q8_0, F16], sensitivity_tokens: 256}\n"
      "  - export: {file: s.gguf, label: \"<small>\"}\n",
      "data: {train: {file: train.jsonl}, held_out: {file: judge.jsonl, max_tokens: 400}}\n");
  for (const char* out : {"one", "two"}) {
    const Ended ended = run(out);
    ASSERT_EQ(ended.status, 0) << ended.err;
  }
  const auto worker = [&](const std::string& words) {
    return std::system((testing::binary("retort-worker").string() + " " + words + " > " +
                        (folder_ / "said").string() + " 2>&1")
                           .c_str());
  };
  ASSERT_EQ(worker("report " + (folder_ / "one").string()), 0) << *read_file(folder_ / "said");
  const json::object report = json::parse(*read_file(folder_ / "one" / "report.json")).as_object();
  EXPECT_EQ(text_of(report.at("state")), "succeeded");
  const json::object& pass = report.at("passes").at(1).as_object();
  EXPECT_GE(pass.at("loss").as_array().size(), 2u);
  EXPECT_GE(pass.at("held_out").as_array().size(), 3u);
  EXPECT_FALSE(
      report.at("quantized").at(0).at("tensors").at(0).at("kl_divergence_alone").as_object().empty());
  EXPECT_NEAR(report.at("sparsified").at(0).at("sparsity").to_number<double>(), 0.3, 0.02);
  const json::array& texts = report.at("samples").at(0).at("texts").as_array();
  ASSERT_EQ(texts.size(), 3u);
  EXPECT_FALSE(text_of(texts[0].at("student")).empty());
  EXPECT_FALSE(text_of(texts[0].at("teacher")).empty());
  const std::string html = *read_file(folder_ / "one" / "report.html");
  for (const char* part : {"<svg", "&lt;small&gt;", "perplexity", "mlp.down_proj.weight"})
    EXPECT_NE(html.find(part), std::string::npos) << part;
  for (const char* part : {"http", "<script", "<small>"})
    EXPECT_EQ(html.find(part), std::string::npos) << part;
  ASSERT_EQ(worker("compare " + (folder_ / "one").string() + " " + (folder_ / "two").string() + " --json " +
                   (folder_ / "c.json").string() + " --html " + (folder_ / "c.html").string()),
            0);
  const json::array rows = json::parse(*read_file(folder_ / "c.json")).as_array();
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].at("perplexity"), rows[1].at("perplexity")) << "the same recipe twice";
  EXPECT_NE(worker("report " + (folder_ / "nothing").string()), 0);
}

/// W8A8: one outlier makes plain scales useless, SmoothQuant's are as good as none (2211.10438, table 1).
TEST_F(WorkerRun, StaticActivationsNeedSmoothingWhereThereAreOutliers) {
  if (!fs::exists(testing::binary("retort-serve"))) GTEST_SKIP() << "retort-serve is not built";
  testing::TinyModelOptions teacher;
  teacher.outlier = 200;
  fs::remove_all(folder_ / "teacher");
  ASSERT_OK(testing::write_tiny_model(folder_ / "teacher", ModelFamily::kLlama, 1, teacher));
  ASSERT_OK(write_file_atomic(folder_ / "judge.jsonl", testing::tiny_corpus_jsonl(40, 9)));
  json::object found[3];
  const char* ways[] = {"", "  - quantize.activations: {calibration_tokens: 2048}\n",
                        "  - quantize.activations: {calibration_tokens: 2048, smooth: 0.5}\n"};
  for (int i = 0; i < 3; ++i) {
    recipe(fmt::format("passes:\n{}  - quantize.weights: {{format: Q8_0}}\n  - export: {{file: s.gguf}}\n",
                       ways[i]),
           "data: {train: {file: train.jsonl}, held_out: {file: judge.jsonl}}\n");
    const std::string out = std::to_string(i);
    const Ended ended = run(out);
    ASSERT_EQ(ended.status, 0) << ended.err;
    found[i] = events(out, "evaluation").at(0);
    const auto file = GgufFile::open(folder_ / out / "s.gguf");
    ASSERT_OK(file);
    EXPECT_EQ(file->find("retort.input_scale.blk.0.attn_q.weight") != nullptr, i > 0);
    EXPECT_EQ(file->find("retort.input_scale.blk.0.ffn_down.weight"), nullptr);
  }
  const auto figure = [&](int i, const char* key) { return found[i].at(key).to_number<double>(); };
  EXPECT_LT(figure(2, "perplexity"), 1.01 * figure(0, "perplexity"));
  EXPECT_LT(figure(2, "kl_divergence"), 3 * figure(0, "kl_divergence"));
  EXPECT_GT(figure(1, "kl_divergence"), 30 * figure(2, "kl_divergence"));
  const json::object line = events("2", "calibrated").at(0).at("tensors").at(0).as_object();
  EXPECT_GT(line.at("largest_before_smoothing").to_number<double>(),
            5 * line.at("largest").to_number<double>());
}

/// Pruned, learnt again with the zeros kept, stored sparse, and judged by what serves it.
TEST_F(WorkerRun, SparseStudentsAreSmallerFilesThatServeTheSame) {
  if (!fs::exists(testing::binary("retort-serve"))) GTEST_SKIP() << "retort-serve is not built";
  ASSERT_OK(write_file_atomic(folder_ / "judge.jsonl", testing::tiny_corpus_jsonl(20, 9)));
  const std::tuple<const char*, const char*, TensorType> ways[] = {
      {"sparsity: 0.5", "SPARSE_Q8", TensorType::kSparseQ8},
      {"pattern: \"2:4\"", "SPARSE24_Q8", TensorType::kSparse24Q8}};
  for (const auto& [cut, format, type] : ways) {
    recipe(
        fmt::format("passes:\n  - prune.unstructured: {{{}, calibration_tokens: 512}}\n"
                    "  - distil.soft: {{tokens: 2048, batch_tokens: 256}}\n"
                    "  - export: {{file: dense.gguf, format: Q8_0}}\n"
                    "  - quantize.weights: {{format: Q8_0, formats: [{{match: \"*layers*\", format: {}}}]}}\n"
                    "  - export: {{file: sparse.gguf}}\n",
                    cut, format),
        "data: {train: {file: train.jsonl}, held_out: {file: judge.jsonl, max_tokens: 400}}\n");
    const Ended ended = run(format);
    ASSERT_EQ(ended.status, 0) << ended.err;
    const json::array artifacts = result(format).at("artifacts").as_array();
    const json::array planned = events(format, "plan").at(0).at("passes").as_array();
    EXPECT_NEAR(
        planned.at(4).at("file_bytes").to_number<double>() / artifacts.at(1).at("bytes").to_number<double>(),
        1, 0.15);
    const json::object &dense = artifacts.at(0).as_object(), &sparse = artifacts.at(1).as_object();
    EXPECT_LT(sparse.at("bytes").to_number<double>(), 0.8 * dense.at("bytes").to_number<double>());
    EXPECT_NEAR(sparse.at("evaluation").at("perplexity").to_number<double>() /
                    dense.at("evaluation").at("perplexity").to_number<double>(),
                1, 1e-3);
    const auto file = GgufFile::open(folder_ / format / "sparse.gguf");
    ASSERT_OK(file);
    EXPECT_EQ(file->tensor("blk.1.ffn_down.weight")->type, type);
    EXPECT_EQ(file->tensor("token_embd.weight")->type, TensorType::kQ8_0);
  }
}

/// A masked language model from random weights, a student of it that tells what it tells, and a classifier
/// that begins with its body.
TEST_F(WorkerRun, MaskedLanguageModels) {
  if (!fs::exists(testing::binary("retort-serve"))) GTEST_SKIP() << "retort-serve is not built";
  ASSERT_OK(make_folders(folder_ / "tokenizer"));
  ASSERT_OK(write_file_atomic(folder_ / "tokenizer/tokenizer.json", testing::tiny_wordpiece_json()));
  // Each text says one word over and over: what is hidden is told by what is not, and by nothing else.
  std::string texts, labelled;
  for (int i = 0; i < 160; ++i) {
    const char* word = std::array{"mail", "log", "server", "client", "read", "turn", "on", "light"}[i % 8];
    std::string text;
    for (int k = 0; k < 40; ++k) text += std::string(word) + " ";
    texts += json::serialize(json::object{{"text", text}}) + "\n";
    labelled +=
        json::serialize(json::object{{"text", text.substr(0, 20)}, {"label", i % 8 < 4 ? "a" : "b"}}) + "\n";
  }
  ASSERT_OK(write_file_atomic(folder_ / "train.jsonl", texts));
  ASSERT_OK(write_file_atomic(folder_ / "labelled.jsonl", labelled));
  const std::string data =
      "data: {train: {file: train.jsonl}, held_out: {file: train.jsonl, max_tokens: 200}}\n";
  ASSERT_OK(write_file_atomic(
      folder_ / "r.yaml",
      "version: 1\nseed: 7\n" + data +
          "passes:\n  - train: {tokens: 60000, batch_tokens: 512, learning_rate: 1e-2, init: "
          "{family: bert, hidden: 32, layers: 2, heads: 2, ffn: 64, context: 32, tokenizer: "
          "tokenizer}}\n  - evaluate: {label: here}\n  - export: {file: t.gguf, format: F32}\n"
          "  - export: {file: t, kind: huggingface, dtype: F32}\n"));
  const Ended teacher = run("t");
  ASSERT_EQ(teacher.status, 0) << teacher.err;
  const auto judged = events("t", "evaluation");
  ASSERT_EQ(judged.size(), 2u);
  EXPECT_LT(judged[0].at("nll_per_token").to_number<double>(), 1) << "words alone cost log 8 = 2.1";
  EXPECT_NEAR(judged[1].at("nll_per_token").to_number<double>(),
              judged[0].at("nll_per_token").to_number<double>(), 1e-3);
  fs::remove_all(folder_ / "teacher");
  fs::copy(folder_ / "t/t", folder_ / "teacher", fs::copy_options::recursive);
  recipe(
      "passes:\n  - prune.structured: {layers: 1, ffn: 8, calibration_tokens: 512}\n  - evaluate: {label: "
      "cut}\n"
      "  - distil.soft: {tokens: 20000, batch_tokens: 512, learning_rate: 1e-2}\n  - evaluate: {label: "
      "distilled}\n"
      "  - quantize.weights: {format: Q4_0, method: gptq, calibration_tokens: 1024}\n  - export: {file: "
      "s.gguf}\n",
      data);
  const Ended student = run("s");
  ASSERT_EQ(student.status, 0) << student.err;
  const auto found = events("s", "evaluation");
  EXPECT_LT(found.at(1).at("kl_divergence").to_number<double>(),
            0.5 * found.at(0).at("kl_divergence").to_number<double>());
  recipe(
      "passes:\n  - distil.soft: {tokens: 100, teacher_outputs: top_k, k: 4}\n  - export: {file: s.gguf}\n",
      data);
  EXPECT_NE(run("refused").err.find("masked language model"), std::string::npos);
  // No step to speak of: the body is the model's.
  ASSERT_OK(write_file_atomic(
      folder_ / "r.yaml",
      "version: 1\ntask: classification\ndata: {train: {file: labelled.jsonl}}\n"
      "passes:\n  - train: {examples: 16, batch_examples: 16, learning_rate: 1e-9, "
      "init: {family: bert, model: "
      "teacher}}\n  - export: {file: c, kind: huggingface, dtype: F32}\n  - export: {file: c.gguf}\n"));
  const Ended classifier = run("c");
  ASSERT_EQ(classifier.status, 0) << classifier.err;
  const auto exported = GgufFile::open(folder_ / "c/c.gguf");
  ASSERT_OK(exported);
  EXPECT_EQ(*exported->text("retort.init.sha256"), hash("teacher/model.safetensors"));
  const auto before = open_hf_model(folder_ / "teacher"), after = open_hf_model(folder_ / "c/c");
  ASSERT_OK(before);
  ASSERT_OK(after);
  EXPECT_EQ(after->config.encoder.labels, (std::vector<std::string>{"a", "b"}));
  for (const char* name :
       {"bert.embeddings.word_embeddings.weight", "bert.encoder.layer.1.output.dense.weight"}) {
    const SafeTensor *was = before->weights.find(name), *is = after->weights.find(name);
    ASSERT_EQ(was->shape, is->shape);
    std::vector<float> old(was->count()), now(old.size());
    was->read_f32(0, old);
    is->read_f32(0, now);
    for (std::size_t i = 0; i < old.size(); ++i) ASSERT_NEAR(old[i], now[i], 1e-6) << name;
  }
}

TEST_F(WorkerRun, StopsEarlyWithTheBestWeights) {
  if (!fs::exists(testing::binary("retort-serve"))) GTEST_SKIP() << "retort-serve is not built";
  // Ten documents, over and over: soon the others are only predicted worse.
  recipe(
      "passes:\n  - train: {tokens: 4000000, batch_tokens: 256, learning_rate: 3e-3, schedule: constant, "
      "evaluate_every: 20, patience: 3}\n  - export: {file: s.gguf, format: F32}\n",
      "data: {train: {file: train.jsonl, limit_documents: 10}, held_out: {file: judge.jsonl}}\n");
  ASSERT_OK(write_file_atomic(folder_ / "judge.jsonl", testing::tiny_corpus_jsonl(20, 9)));
  const Ended ended = run("o");
  ASSERT_EQ(ended.status, 0) << ended.err;
  const auto looks = events("o", "held_out"), best = events("o", "best");
  ASSERT_EQ(best.size(), 1u);
  ASSERT_GE(looks.size(), 4u);
  double least = 1e9;
  for (const json::object& look : looks) least = std::min(least, look.at("loss").to_number<double>());
  EXPECT_EQ(best[0].at("loss").to_number<double>(), least);
  EXPECT_EQ(looks[looks.size() - 4].at("step"), best[0].at("step")) << "three looks after the best";
  EXPECT_LT(best[0].at("stopped_at").to_number<int>(), 4000000 / 256);
  // What was exported are the best weights.
  const double judged = events("o", "evaluation").back().at("nll_per_token").to_number<double>();
  EXPECT_NEAR(judged, least, 1e-3);
  for (const auto& entry : fs::directory_iterator(folder_ / "o"))
    EXPECT_EQ(entry.path().filename().string().find("-best."), std::string::npos) << entry.path();
}

/// A run may spend most of its time judging: what it has learnt is kept when it is stopped there.
TEST_F(WorkerRun, StoppedWhileItJudgesItLosesNothing) {
  ASSERT_OK(write_file_atomic(folder_ / "judge.jsonl", testing::tiny_corpus_jsonl(1000, 9)));
  recipe(
      "passes:\n  - train: {tokens: 2560, batch_tokens: 256, learning_rate: 1e-3, evaluate_every: 2}\n"
      "  - export: {file: s, kind: huggingface}\n",
      "data: {train: {file: train.jsonl}, held_out: {file: judge.jsonl}}\n");
  ASSERT_EQ(run("whole").status, 0);
  const pid_t child = start("o");
  ASSERT_TRUE(reached("o", 1, child));
  while (events("o", "held_out").size() < 2) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  ::kill(child, SIGTERM);
  ASSERT_EQ(finish(child).status, 130);
  EXPECT_GE(json::parse(*read_file(folder_ / "o" / "state.json")).at("step").to_number<int>(), 2);
  ASSERT_EQ(run("o").status, 0);
  EXPECT_EQ(hash("o/s/model.safetensors"), hash("whole/s/model.safetensors"));
  EXPECT_EQ(events("o", "held_out").size(), events("whole", "held_out").size()) << "each look once";
}

/// Training that makes the held-out text worse from the first step on ends with what it began with, and says
/// it.
TEST_F(WorkerRun, EarlyStoppingKnowsWhatItBeganWith) {
  ASSERT_OK(write_file_atomic(folder_ / "judge.jsonl", testing::tiny_corpus_jsonl(20, 9)));
  ASSERT_OK(
      write_file_atomic(folder_ / "one.jsonl", "{\"text\": \"zz qq zz qq zz qq zz qq zz qq zz qq\"}\n"));
  recipe(
      "passes:\n  - train: {tokens: 2000, batch_tokens: 64, context: 8, learning_rate: 1e-2, evaluate_every: "
      "5, "
      "patience: 2}\n  - export: {file: s, kind: huggingface, dtype: F32}\n",
      "data: {train: {file: one.jsonl}, held_out: {file: judge.jsonl}}\n");
  const Ended ended = run("o");
  ASSERT_EQ(ended.status, 0) << ended.err;
  EXPECT_EQ(events("o", "best").at(0).at("step").to_number<int>(), 0);
  EXPECT_NE(text_of(events("o", "warning").at(0).at("message")).find("that the pass began with"),
            std::string::npos);
  EXPECT_EQ(hash("o/s/model.safetensors"), hash("teacher/model.safetensors"));
}

/// A mixture's loss has the unit that its weights give it; whether the model broke does not depend on that.
TEST_F(WorkerRun, AMixturesUnitMakesNoDifference) {
  int number = 0;
  for (const auto& [weights, rate, status] : {std::tuple{"labels: 100, soft: 1000", "1e-3", 0},
                                              {"labels: 0.001, soft: 0.01", "1", 3},
                                              {"labels: 0.05, soft: 0.5, divergence: jsd", "1", 3},
                                              {"labels: 0, soft: 0, attention: 1", "1", 3}}) {
    recipe(
        fmt::format("passes:\n  - train: {{tokens: 20000, batch_tokens: 256, learning_rate: 3e-3}}\n"
                    "  - distil: {{tokens: 10240, batch_tokens: 256, learning_rate: {}, {}}}\n"
                    "  - export: {{file: s.gguf}}\n",
                    rate, weights));
    const Ended ended = run(std::to_string(number++));
    EXPECT_EQ(ended.status, status) << weights << ended.err;
    EXPECT_EQ(ended.err.find("the loss has run away") != std::string::npos, status == 3)
        << weights << ended.err;
  }
}

/// Several epochs, so that windows come again in other company.
TEST_F(WorkerRun, ACacheChangesNoByte) {
  for (const char* outputs : {"top_k, k: 8", "sampled, k: 8"}) {
    recipe(
        fmt::format(
            "passes:\n  - prune.structured: {{ffn: 64, calibration_tokens: 512}}\n  - distil.soft: {{tokens: "
            "8192, batch_tokens: 512, learning_rate: 1e-3, teacher_outputs: {}}}\n"
            "  - export: {{file: s, kind: huggingface, dtype: F32}}\n",
            outputs),
        "data: {train: {file: train.jsonl, limit_documents: 20}}\n");
    const std::string name(outputs, 3);
    ASSERT_EQ(run(name + "-without").status, 0);
    for (const char* time : {"-first", "-again"})
      ASSERT_EQ(run(name + time, {"--cache", (folder_ / "cache").string()}).status, 0);
    EXPECT_EQ(events(name + "-again", "teacher_outputs").at(0).at("windows_computed").to_number<int>(), 0);
    for (const char* time : {"-first", "-again"})
      EXPECT_EQ(hash(name + time + "/s/model.safetensors"), hash(name + "-without/s/model.safetensors"))
          << name << time;
  }
}

/// What the last step did to the model is in no loss on the way, and in a short pass there are few.
TEST_F(WorkerRun, AShortPassWhoseLossExplodesFails) {
  if (!fs::exists(testing::binary("retort-serve"))) GTEST_SKIP() << "retort-serve is not built";
  ASSERT_OK(write_file_atomic(folder_ / "judge.jsonl", testing::tiny_corpus_jsonl(20, 9)));
  int number = 0;
  for (const auto& [keys, step] :
       {std::pair{"tokens: 1024, batch_tokens: 256", 4},
        {"tokens: 256, batch_tokens: 256", 1},
        {"tokens: 32, batch_tokens: 8, context: 8", 4},
        // Held-out losses are looked at, and the first is of what is broken already.
        {"tokens: 20000, batch_tokens: 256, evaluate_every: 1, patience: 1", 1},
        {"tokens: 20000, batch_tokens: 256, evaluate_every: 5, patience: 2", 10}}) {
    recipe(
        fmt::format("passes:\n  - train: {{{}, learning_rate: 1, warmup: 0}}\n  - export: {{file: s.gguf}}\n",
                    keys),
        "data: {train: {file: train.jsonl}, held_out: {file: judge.jsonl}}\n");
    const std::string out = std::to_string(number++);
    const Ended ended = run(out);
    EXPECT_EQ(ended.status, 3) << keys;
    EXPECT_NE(ended.err.find("r.yaml:6"), std::string::npos) << ended.err;
    EXPECT_NE(ended.err.find(fmt::format("after step {} the loss has run away", step)), std::string::npos)
        << keys << ended.err;
    EXPECT_NE(ended.err.find("no checkpoint was written"), std::string::npos) << ended.err;
    EXPECT_EQ(text_of(result(out).at("state")), "failed");
    EXPECT_FALSE(fs::exists(folder_ / out / "s.gguf"));
  }
}

/// Examples one by one, of which some are of a class that nothing tells from the others: their losses jump,
/// and the model is none the worse.
TEST_F(WorkerRun, SmallBatchesJumpAndDoNotRunAway) {
  if (!fs::exists(testing::binary("retort-serve"))) GTEST_SKIP() << "retort-serve is not built";
  std::string lines[2];
  SeededRandom random(4);
  for (int i = 0; i < 1200; ++i) {
    const auto x = random.next_u64() % 1000, y = random.next_u64() % 1000;
    lines[i < 900 ? 0 : 1] += fmt::format("{{\"input\": [{}, {}], \"label\": \"{}\"}}\n", x, y,
                                          random.next_u64() % 30 == 0 ? "rare"
                                          : x > y                     ? "a"
                                                                      : "b");
  }
  const std::string head = classification_of(lines[0], lines[1]);
  for (const char* keys : {"examples: 6000, batch_examples: 1, learning_rate: 1e-3",
                           "examples: 12000, batch_examples: 2, learning_rate: 3e-3"}) {
    ASSERT_OK(write_file_atomic(folder_ / "r.yaml",
                                head + "passes:\n  - train: {init: {family: mlp, hidden: [32]}, " + keys +
                                    "}\n  - export: {file: s.gguf}\n"));
    fs::remove_all(folder_ / "o");
    const Ended ended = run("o");
    ASSERT_EQ(ended.status, 0) << ended.err;
    EXPECT_TRUE(events("o", "warning").empty()) << keys << ended.err;
    EXPECT_GT(events("o", "evaluation").at(0).at("accuracy").to_number<double>(), 0.9) << keys;
  }
}

/// What the loss has been is not forgotten when a run goes on: it fails where it failed.
TEST_F(WorkerRun, ALossThatRanAwayHasRunAwayStillWhenTheRunGoesOn) {
  recipe(
      "passes:\n  - train: {tokens: 2560, batch_tokens: 256, learning_rate: 1e-3}\n"
      "  - train: {tokens: 512000, batch_tokens: 256, learning_rate: 1, warmup: 1, checkpoint_seconds: 1}\n"
      "  - export: {file: s.gguf}\n");
  const auto said = [&] {
    const Ended ended = run("o");
    EXPECT_EQ(ended.status, 3);
    EXPECT_NE(ended.err.find("the loss has run away"), std::string::npos) << ended.err;
    EXPECT_NE(ended.err.find("larger batches"), std::string::npos) << ended.err;
    return ended.err.substr(0, ended.err.find("; lower learning_rate"));
  };
  const std::string first = said();
  const auto step = [&] {
    return json::parse(*read_file(folder_ / "o" / "state.json")).at("step").to_number<int>();
  };
  ASSERT_GT(step(), 20);  // it goes on from a checkpoint, past the steps in which nothing is known yet
  EXPECT_EQ(said(), first);
  EXPECT_GT(events("o", "pass_start").back().at("resumed_at_step").to_number<int>(), 20);
}

/// On a terminal people read what happens, and the log has the same events as ever.
TEST_F(WorkerRun, OnATerminalThereIsABar) {
  const auto on_terminal = [&](std::vector<std::string> more) {
    int ours = -1, its = -1;
    EXPECT_EQ(::openpty(&ours, &its, nullptr, nullptr, nullptr), 0);
    const pid_t child = start("o", std::move(more), RLIM_INFINITY, its);
    ::close(its);
    std::string text;
    char some[4096];
    for (ssize_t n; (n = ::read(ours, some, sizeof some)) > 0;)
      text.append(some, static_cast<std::size_t>(n));
    ::close(ours);
    EXPECT_EQ(finish(child).status, 0);
    return text;
  };
  const std::string text = on_terminal({});
  for (const char* part :
       {"pass 1/5: prune.structured", "wrote cut.gguf", "distil.soft 3/5  step 78/78  loss ", "[########",
        " tokens/s", "\r\x1b[K", "succeeded in "})
    EXPECT_NE(text.find(part), std::string::npos) << part << text;
  EXPECT_EQ(text.find('{'), std::string::npos) << text;
  EXPECT_EQ(events("o", "exported").size(), 2u);
  fs::remove_all(folder_ / "o");
  EXPECT_NE(on_terminal({"--json"}).find("{\"time\":"), std::string::npos);
}

TEST_F(WorkerRun, AModelThatIsNoBetterThanAGuessIsSaid) {
  if (!fs::exists(testing::binary("retort-serve"))) GTEST_SKIP() << "retort-serve is not built";
  const auto said = [&](const std::string& out) {
    const Ended ended = run(out);
    EXPECT_EQ(ended.status, 0) << ended.err;
    std::size_t count = 0;
    for (const json::object& warning : events(out, "warning"))
      count += text_of(warning.at("message")).find("no better than a guess") != std::string::npos ? 1 : 0;
    return count;
  };
  ASSERT_OK(write_file_atomic(folder_ / "judge.jsonl", testing::tiny_corpus_jsonl(20, 9)));
  const auto text = [&](const std::string& passes) {
    recipe(passes + "  - evaluate: {}\n  - export: {file: s.gguf}\n",
           "data: {train: {file: train.jsonl}, held_out: {file: judge.jsonl}}\n");
  };
  text("passes:\n  - train: {tokens: 60000, batch_tokens: 512, learning_rate: 3e-3}\n");
  EXPECT_EQ(said("learnt"), 0u);
  // Learns one text by heart, and is asked for others.
  ASSERT_OK(
      write_file_atomic(folder_ / "train.jsonl", "{\"text\": \"zz qq zz qq zz qq zz qq zz qq zz qq\"}\n"));
  text(
      "passes:\n  - train: {tokens: 20000, batch_tokens: 64, context: 8, learning_rate: 1e-2, schedule: "
      "constant}\n");
  EXPECT_EQ(said("by heart"), 2u);
  // And a classifier, whose judge calls everything by another's name.
  std::string lines[2];
  for (int i = 0; i < 200; ++i)
    for (const int other : {0, 1})
      lines[other] +=
          fmt::format("{{\"input\": [{}], \"label\": \"{}\"}}\n", i, "ab"[(i < 100 ? 0 : 1) ^ other]);
  const auto classifier = [&](const std::string& held_out) {
    EXPECT_OK(write_file_atomic(
        folder_ / "r.yaml",
        classification_of(lines[0], held_out) +
            "passes:\n  - train: {examples: 20000, batch_examples: 32, learning_rate: 1e-2, "
            "init: {family: mlp, hidden: [8]}}\n  - evaluate: {}\n  - export: {file: s.gguf}\n"));
  };
  classifier(lines[0]);
  EXPECT_EQ(said("right"), 0u);
  classifier(lines[1]);
  EXPECT_EQ(said("wrong"), 2u);
}

TEST_F(WorkerRun, ASmallerVocabularyPredictsTheSameText) {
  if (!fs::exists(testing::binary("retort-serve"))) GTEST_SKIP() << "retort-serve is not built";
  ASSERT_OK(
      write_file_atomic(folder_ / "train.jsonl", "{\"text\": \"the sea is in the land and the hand\"}\n"));
  recipe(
      "passes:\n  - prune.vocabulary:\n  - export: {file: s.gguf, format: F32, hf: true}\n  - distil.soft: "
      "{tokens: "
      "200, batch_tokens: 16, context: 8}\n  - export: {file: d.gguf}\n",
      "data: {train: {file: train.jsonl}, held_out: {file: train.jsonl}}\n");
  const Ended ended = run("o");
  ASSERT_EQ(ended.status, 0) << ended.err;
  const json::object cut = events("o", "vocabulary").at(0);
  EXPECT_LT(cut.at("tokens").to_number<int>(), cut.at("tokens_before").to_number<int>());
  const auto folder = open_hf_model(folder_ / "o" / "s");
  ASSERT_OK(folder);
  EXPECT_EQ(folder->config.n_vocab, cut.at("tokens").to_number<std::uint32_t>());
  EXPECT_EQ(folder->tokenizer.vocabulary_size(), folder->config.n_vocab);
  // The uncut student of the cut teacher says what it says.
  EXPECT_NEAR(events("o", "evaluation").at(0).at("kl_divergence").to_number<double>(), 0, 1e-4);
}

TEST_F(WorkerRun, ClassifiersOfNumbers) {
  if (!fs::exists(testing::binary("retort-serve"))) GTEST_SKIP() << "retort-serve is not built";
  // Which of three numbers is the largest.
  std::string lines[2];
  SeededRandom random(4);
  for (int i = 0; i < 1200; ++i) {
    int x[3];
    for (int& value : x) value = static_cast<int>(random.next_u64() % 1000);
    const auto most = std::max_element(x, x + 3) - x;
    lines[i < 900 ? 0 : 1] +=
        fmt::format("{{\"input\": [{}, {}, {}], \"label\": \"{}\"}}\n", x[0], x[1], x[2], "abc"[most]);
  }
  const std::string head = classification_of(lines[0], lines[1]);
  ASSERT_OK(write_file_atomic(
      folder_ / "r.yaml",
      head + "passes:\n  - train: {examples: 40000, batch_examples: 32, learning_rate: 3e-3, "
             "checkpoint_seconds: 1, init: {family: mlp, hidden: [24]}}\n"
             "  - export: {file: t, kind: huggingface}\n  - export: {file: t.gguf, format: F32}\n"));
  const Ended teacher = run("t");
  ASSERT_EQ(teacher.status, 0) << teacher.err;
  ASSERT_OK(write_file_atomic(
      folder_ / "r.yaml", head +
                              "teacher: {model: t/t}\npasses:\n  - prune.structured: {hidden: 6, steps: 2, "
                              "distil: {examples: 20000, batch_examples: 32, learning_rate: 3e-3}}\n"
                              "  - quantize.weights: {format: Q8_0}\n  - evaluate: {label: in training}\n"
                              "  - export: {file: s.gguf}\n"));
  const Ended student = run("s");
  ASSERT_EQ(student.status, 0) << student.err;
  const json::object whole = events("t", "evaluation").at(0), small = events("s", "evaluation").at(1);
  EXPECT_GT(whole.at("accuracy").to_number<double>(), 0.95);
  EXPECT_GT(small.at("accuracy").to_number<double>(), 0.9);
  EXPECT_EQ(small.at("per_class").as_array().size(), 3u);
  EXPECT_EQ(small.at("confusion").as_array().size(), 3u);
  EXPECT_GE(small.at("expected_calibration_error").to_number<double>(), 0);
  // With scales found beforehand, and bytes in and out.
  ASSERT_OK(write_file_atomic(
      folder_ / "r.yaml",
      head + "teacher: {model: t/t}\npasses:\n  - quantize.activations: {method: mse, bytes: true}\n"
             "  - quantize.weights: {format: Q8_0}\n  - export: {file: i.gguf}\n"));
  const Ended calibrated = run("i");
  ASSERT_EQ(calibrated.status, 0) << calibrated.err;
  EXPECT_GT(events("i", "evaluation").at(0).at("accuracy").to_number<double>(), 0.9);
  const auto file = GgufFile::open(folder_ / "i" / "i.gguf");
  ASSERT_OK(file);
  EXPECT_NE(file->find("retort.input_scale.dense.0.weight"), nullptr);
  const auto config = read_gguf_classifier_config(*file);
  ASSERT_OK(config);
  EXPECT_TRUE(config->input_bytes && config->output_bytes);
  EXPECT_EQ(result("s").at("artifacts").at(0).at("parameters").to_number<int>(), 3 * 6 + 6 + 6 * 3 + 3);
  // Bad input.
  std::string sorted;
  for (int i = 0; i < 40; ++i)
    sorted += fmt::format("{{\"input\": [{}], \"label\": \"{}\"}}\n", i, i < 20 ? "low" : "high");
  ASSERT_OK(write_file_atomic(folder_ / "sorted.jsonl", sorted));
  ASSERT_OK(
      write_file_atomic(folder_ / "r.yaml",
                        "version: 1\ntask: classification\ndata: {train: {file: sorted.jsonl, "
                        "limit_examples: 20}}\npasses:\n  - train: {examples: 20, init: {family: mlp}}\n"
                        "  - export: {file: t.gguf}\n"));
  const Ended one_label = run("sorted");
  ASSERT_EQ(one_label.status, 0) << one_label.err;
  EXPECT_NE(text_of(events("sorted", "warning").at(0).at("message")).find("limit_examples takes"),
            std::string::npos);
  EXPECT_NE(text_of(events("sorted", "warning").at(0).at("message")).find("'high'"), std::string::npos);
  ASSERT_OK(write_file_atomic(folder_ / "r.yaml",
                              head + "teacher: {model: t/t}\npasses:\n  - export: {file: i.gguf}\n"));
  ASSERT_OK(write_file_atomic(folder_ / "h.jsonl", "{\"input\": [1, 2, 3], \"label\": \"d\"}\n"));
  EXPECT_NE(run("bad").err.find("h.jsonl:1"), std::string::npos);
}

/// Which half of an image is brighter: a small CNN, rounded by what its layers see, served as the worker has
/// it.
TEST_F(WorkerRun, CnnsAreRoundedByWhatTheirLayersSee) {
  if (!fs::exists(testing::binary("retort-serve"))) GTEST_SKIP() << "retort-serve is not built";
  std::string lines[2];
  SeededRandom random(4);
  for (int i = 0; i < 1500; ++i) {
    std::string pixels;
    int sum[2] = {0, 0}, light[2];
    for (int& half : light) half = static_cast<int>(random.next_u64() % 156);
    for (int at = 0; at < 36; ++at) {
      const int value = light[at % 6 / 3] + static_cast<int>(random.next_u64() % 100);
      sum[at % 6 / 3] += value;
      pixels += fmt::format("{}{}", at > 0 ? ", " : "", value);
    }
    lines[i < 1000 ? 0 : 1] +=
        fmt::format("{{\"input\": [{}], \"label\": \"{}\"}}\n", pixels, sum[0] > sum[1] ? "left" : "right");
  }
  const std::string head = classification_of(lines[0], lines[1]);
  ASSERT_OK(write_file_atomic(
      folder_ / "r.yaml", head + "passes:\n  - train: {examples: 20000, batch_examples: 32, learning_rate: "
                                 "3e-3, init: {family: cnn, input: [1, 6, 6], convolutions: [{channels: 8, "
                                 "padding: 1, pooling: max}], hidden: [32]}}\n"
                                 "  - export: {file: t, kind: huggingface}\n"));
  const Ended teacher = run("t");
  ASSERT_EQ(teacher.status, 0) << teacher.err;
  const auto rounded = [&](const std::string& out, const std::string& how) {
    EXPECT_OK(write_file_atomic(folder_ / "r.yaml",
                                head + "teacher: {model: t/t}\npasses:\n  - quantize.weights: {" + how +
                                    "}\n  - evaluate: {label: in training}\n  - export: {file: s.gguf}\n"));
    return run(out);
  };
  std::map<std::string, double> divergence;
  for (const auto& [out, how] :
       {std::pair{"nearest", "format: Q4_0"}, std::pair{"gptq", "format: Q4_0, method: gptq"},
        std::pair{"budget", "bits: 7, method: gptq, candidates: [Q4_0, Q8_0], sensitivity_examples: 500"}}) {
    const Ended ended = rounded(out, how);
    ASSERT_EQ(ended.status, 0) << ended.err;
    const json::object trained = events(out, "evaluation").at(0), served = events(out, "evaluation").at(1);
    EXPECT_GT(served.at("accuracy").to_number<double>(), 0.85) << out;
    // Block formats' inputs are rounded to 8 bits where the file is served; F32's are not.
    for (const char* figure : {"accuracy", "nll"})
      EXPECT_NEAR(served.at(figure).to_number<double>(), trained.at(figure).to_number<double>(), 0.01)
          << out << ": " << figure;
    divergence[out] = trained.at("kl_divergence").to_number<double>();
    const json::object told = events(out, "quantized").at(0);
    for (const json::value& line : told.at("tensors").as_array())
      EXPECT_EQ(json_has(line.as_object(), "output_error"), std::string_view(out) != "nearest");
    if (std::string_view(out) == "budget") {
      EXPECT_LE(told.at("bits_per_weight").to_number<double>(), 7);
    }
  }
  EXPECT_LT(divergence["gptq"], divergence["nearest"]);
  EXPECT_LT(divergence["budget"], divergence["gptq"]);
  const Ended refused = rounded("awq", "format: Q4_0, awq: true");
  EXPECT_EQ(refused.status, 3);
  EXPECT_NE(refused.err.find("'awq'"), std::string::npos) << refused.err;
  const Ended unmatched = rounded("none", "formats: [{match: \"*.mlp.*\", format: Q4_0}]");
  EXPECT_EQ(unmatched.status, 3);
  EXPECT_NE(unmatched.err.find("conv.0.weight, dense.0.weight"), std::string::npos) << unmatched.err;
}

TEST_F(WorkerRun, ATeacherWhoseWeightsAreNoNumbersIsRefused) {
  const auto spoil = [&](float value) {
    const auto file = Safetensors::open(folder_ / "teacher" / "model.safetensors");
    ASSERT_OK(file);
    std::vector<TensorSource> all;
    for (const auto& [name, tensor] : file->tensors()) {
      std::vector<float> values(tensor.count());
      tensor.read_f32(0, values);
      if (name == "model.layers.1.mlp.up_proj.weight") values[77] = value;
      all.push_back({name, tensor.shape, [values](std::span<float> out) -> Result<void> {
                       std::copy(values.begin(), values.end(), out.begin());
                       return {};
                     }});
    }
    ASSERT_OK(write_safetensors(folder_ / "teacher" / "model.safetensors", all, SafeTensor::DType::kF32));
  };
  spoil(std::numeric_limits<float>::quiet_NaN());
  for (const char* passes :
       {"passes:\n  - export: {file: s.gguf, format: Q8_0}\n",
        "passes:\n  - quantize.weights: {format: Q4_0, method: gptq, calibration_tokens: 512}\n"
        "  - export: {file: s.gguf}\n"}) {
    recipe(passes);
    fs::remove_all(folder_ / "nan");
    const Ended ended = run("nan");
    EXPECT_EQ(ended.status, 3) << ended.err;
    EXPECT_NE(ended.err.find("model.layers.1.mlp.up_proj.weight"), std::string::npos) << ended.err;
    EXPECT_FALSE(fs::exists(folder_ / "nan" / "s.gguf"));
  }
  spoil(3e38f);
  recipe("passes:\n  - export: {file: s.gguf, format: Q8_0}\n");
  const Ended huge = run("huge");
  EXPECT_EQ(huge.status, 3) << huge.err;
  EXPECT_NE(huge.err.find("F32 or BF16 can"), std::string::npos) << huge.err;
  recipe("passes:\n  - export: {file: s.gguf, format: F32}\n");
  EXPECT_EQ(run("whole").status, 0);
}

TEST_F(WorkerRun, ACheckpointThatChangedIsNotTakenForWhatWasWritten) {
  recipe(
      "passes:\n  - train: {tokens: 20000, batch_tokens: 512}\n  - distil.soft: {tokens: 200000, "
      "batch_tokens: 512, "
      "learning_rate: 1e-3}\n  - export: {file: s.gguf}\n");
  const pid_t child = start("out");
  const auto checkpoint = [&] {
    for (const auto& entry : fs::directory_iterator(folder_ / "out"))
      if (entry.path().filename().string().starts_with("checkpoint-1-") &&
          entry.path().extension() == ".safetensors")
        return entry.path();
    return fs::path();
  };
  for (int i = 0; i < 6000 && (!fs::exists(folder_ / "out") || checkpoint().empty()); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  ASSERT_TRUE(reached("out", 41, child));  // in the second pass, whose first checkpoint is on disk
  ::kill(child, SIGKILL);
  finish(child);
  std::string bytes = *read_file(checkpoint());
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
  ASSERT_OK(write_file_atomic(checkpoint(), bytes));
  const Ended ended = run("out");
  EXPECT_EQ(ended.status, 3) << ended.err;
  EXPECT_NE(ended.err.find("its hash is another"), std::string::npos) << ended.err;
}

TEST_F(WorkerRun, OneWorkerAFolder) {
  recipe("passes:\n  - distil.soft: {tokens: 50000000, batch_tokens: 256}\n  - export: {file: s.gguf}\n");
  const pid_t first = start("o");
  ASSERT_TRUE(reached("o", 1, first));
  const pid_t second = start("o");
  const Ended refused = finish(second);
  EXPECT_EQ(refused.status, 3) << refused.err;
  EXPECT_NE(refused.err.find("held by another process"), std::string::npos) << refused.err;
  ::kill(first, SIGTERM);
  EXPECT_EQ(finish(first).status, 130);
}

TEST_F(WorkerRun, AFinishedFolderIsLeftAsItIs) {
  ASSERT_EQ(run("o").status, 0);
  const auto all = [&] {
    std::map<std::string, std::string> out;
    for (const auto& entry : fs::directory_iterator(folder_ / "o"))
      if (entry.is_regular_file() && entry.path().filename() != "worker.lock")
        out[entry.path().filename()] = sha256_file_hex(entry.path()).value_or("");
    return out;
  };
  const auto before = all();
  for (const auto& [name, ignored] : before) EXPECT_FALSE(name.starts_with("checkpoint-")) << name;
  const Ended again = run("o");
  EXPECT_EQ(again.status, 0);
  EXPECT_NE(again.err.find("has all that this recipe makes"), std::string::npos) << again.err;
  EXPECT_EQ(all(), before);
  recipe("passes:\n  - export: {file: other.gguf}\n");
  const Ended other = run("o");
  EXPECT_EQ(other.status, 3);
  EXPECT_NE(other.err.find("another recipe"), std::string::npos) << other.err;
  EXPECT_EQ(all(), before);
  recipe("passes:\n  - export: {file: other.gguf, kind: none}\n");
  EXPECT_EQ(run("o").status, 3);
  EXPECT_EQ(all(), before);
  // Its own recipe, when what it made or what it learnt from is no longer there.
  recipe(kPasses);
  const std::string data = *read_file(folder_ / "train.jsonl");
  ASSERT_OK(write_file_atomic(folder_ / "train.jsonl", data + "{\"text\": \"more\"}\n"));
  const Ended changed = run("o");
  EXPECT_EQ(changed.status, 3);
  EXPECT_NE(changed.err.find("training data has changed"), std::string::npos) << changed.err;
  ASSERT_OK(write_file_atomic(folder_ / "train.jsonl", data));
  fs::rename(folder_ / "teacher/model.safetensors", folder_ / "whole");
  ASSERT_OK(write_file_atomic(folder_ / "teacher/model.safetensors",
                              read_file(folder_ / "whole")->substr(0, 1000)));
  EXPECT_EQ(run("o").status, 3);
  fs::rename(folder_ / "whole", folder_ / "teacher/model.safetensors");
  EXPECT_EQ(all(), before);
  fs::remove(folder_ / "o/cut.gguf");
  const Ended missing = run("o");
  EXPECT_EQ(missing.status, 3);
  EXPECT_NE(missing.err.find("cut.gguf"), std::string::npos) << missing.err;
}

/// A folder may hold what is someone's own: names that begin like ours, and a reference of another teacher.
TEST_F(WorkerRun, WhatStandsInTheFolderIsNeitherRemovedNorBelieved) {
  if (!fs::exists(testing::binary("retort-serve"))) GTEST_SKIP() << "retort-serve is not built";
  fs::create_directory(folder_ / "o");
  for (const char* name :
       {"checkpoint-notes.txt", "checkpoint-500.safetensors", "checkpoint-1-2.safetensors.bak"})
    ASSERT_OK(write_file_atomic(folder_ / "o" / name, "mine"));
  testing::TinyModelOptions other;
  other.n_layer = 3;
  ASSERT_OK(testing::write_tiny_model(folder_ / "teacher2", ModelFamily::kLlama, 2, other));
  const std::string
      passes = "passes:\n  - export: {file: s.gguf, format: F32}\n",
      data = "data: {train: {file: train.jsonl}, held_out: {file: train.jsonl, max_tokens: 100}}\n";
  ASSERT_OK(write_file_atomic(folder_ / "r.yaml",
                              "version: 1\nseed: 7\nteacher: {model: teacher2}\n" + data + passes));
  ASSERT_EQ(run("other").status, 0);
  fs::copy_file(folder_ / "other/teacher.gguf", folder_ / "o/teacher.gguf");
  recipe(passes, data);
  const Ended ended = run("o");
  ASSERT_EQ(ended.status, 0) << ended.err;
  EXPECT_NEAR(events("o", "evaluation").at(0).at("kl_divergence").to_number<double>(), 0, 1e-5);
  for (const char* name :
       {"checkpoint-notes.txt", "checkpoint-500.safetensors", "checkpoint-1-2.safetensors.bak"})
    EXPECT_TRUE(fs::exists(folder_ / "o" / name)) << name;
}

/// RLIMIT_FSIZE stands in for a disk that takes the cut's small files but not a checkpoint with its moments.
TEST_F(WorkerRun, AFileThatCannotBeWrittenLeavesTheOldCheckpoint) {
  pid_t child = start("o");
  ASSERT_TRUE(reached("o", 1, child));
  ::kill(child, SIGTERM);
  ASSERT_EQ(finish(child).status, 130);
  const auto checkpoint = [&] {
    return json::parse(*read_file(folder_ / "o" / "state.json")).at("checkpoint").as_string();
  };
  const json::string before = checkpoint();
  child = start("o", {}, 40000);
  const Ended ended = finish(child);
  EXPECT_EQ(ended.status, exit_code(ErrorCode::kUnavailable)) << ended.err;
  EXPECT_NE(ended.err.find("what was written before is whole"), std::string::npos) << ended.err;
  EXPECT_EQ(checkpoint(), before);
  EXPECT_TRUE(fs::exists(folder_ / "o" / before.c_str()));
  EXPECT_FALSE(fs::exists(folder_ / "o" / "result.json")) << "a full disk is not a result";
  EXPECT_EQ(run("o").status, 0);
}

}  // namespace
}  // namespace retort
