#include "coordinator/worker/judge.h"

#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>

#include "common/core/file.h"
#include "common/process/process.h"

namespace retort {

namespace fs = std::filesystem;

Result<fs::path> find_serve(const fs::path& given) {
  if (!given.empty()) {
    if (::access(given.c_str(), X_OK) == 0) return given;
  } else {
    std::error_code error;
    const fs::path beside = fs::read_symlink("/proc/self/exe", error).parent_path() / "retort-serve";
    if (::access(beside.c_str(), X_OK) == 0) return beside;
    std::string list = std::getenv("PATH") != nullptr ? std::getenv("PATH") : "";
    for (std::size_t at = 0; at <= list.size();) {
      const std::size_t end = std::min(list.find(':', at), list.size());
      const fs::path candidate = fs::path(list.substr(at, end - at)) / "retort-serve";
      if (end > at && ::access(candidate.c_str(), X_OK) == 0) return candidate;
      at = end + 1;
    }
  }
  return fail(ErrorCode::kNotFound, given.empty() ? "retort-serve" : given.string(),
              "the program that judges exported files is not there; name it with --serve-binary, or take "
              "held_out out of the recipe");
}

Result<json::object> serve_eval(const fs::path& serve, const fs::path& file,
                                const std::vector<std::string>& arguments, const fs::path& folder,
                                const std::function<Result<void>()>& check_stop) {
  ProcessSpec spec;
  spec.arguments = {serve.string(), "eval", file.string()};
  spec.arguments.insert(spec.arguments.end(), arguments.begin(), arguments.end());
  const fs::path answer = folder / "eval.json", errors = folder / "eval.stderr";
  std::error_code ignored;
  fs::remove(answer, ignored);
  fs::remove(errors, ignored);
  spec.stdout_file = answer;
  spec.stderr_file = errors;
  spec.die_with_parent = true;
  const pid_t child = RETORT_TRY(start_process(spec));
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR)
    if (!check_stop()) ::kill(child, SIGTERM);
  RETORT_TRY(check_stop());
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    std::string text = read_file(errors, 1 << 20).value_or("");
    if (text.size() > 500) text = "…" + text.substr(text.size() - 500);
    return fail(ErrorCode::kInternal, file.string(), "retort-serve eval {} {}: {}",
                WIFEXITED(status) ? "left with status" : "died of signal",
                WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status), text);
  }
  const json::value value =
      RETORT_TRY(parse_json(RETORT_TRY(read_file(answer, 16 << 20)), "retort-serve eval"));
  fs::remove(answer, ignored);
  fs::remove(errors, ignored);
  return *RETORT_TRY(as_object(value, "retort-serve eval"));
}

}  // namespace retort
