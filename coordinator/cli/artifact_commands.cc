#include <unistd.h>
#include <cstdio>

#include "common/core/sha256.h"
#include "common/core/units.h"
#include "coordinator/cli/commands.h"
#include "coordinator/cli/table.h"
#include "coordinator/cli/views.h"

namespace retort::cli {
namespace {

struct ArtifactArguments {
  std::string id;
  std::string file;
};

}  // namespace

void add_artifact_commands(Program& program) {
  const auto given = std::make_shared<ArtifactArguments>();
  CLI::App* app = program.noun("artifact", "students, named by the SHA-256 of their file");
  program.add_ls(app, "/v1/artifacts", artifacts_table);
  program.add_show(app, "/v1/artifacts", "SHA256");
  CLI::App* get = program.verb(
      app, "get", "download one and check it against its name",
      "  retort artifact get 3f2a9c01d5e7 student.gguf", [&program, given]() -> Result<int> {
        Rest rest = RETORT_TRY(program.connect());
        const std::string path = "/v1/artifacts/" + escape_url(given->id);
        const json::value artifact = RETORT_TRY(rest.get(path));
        const json::object* object = RETORT_TRY(as_object(artifact, path));
        const std::string sha256 = RETORT_TRY(json_string(*object, "sha256", path));
        const std::uint64_t bytes = RETORT_TRY(json_uint(*object, "bytes", path));
        const bool terminal = ::isatty(STDERR_FILENO) == 1;
        const std::filesystem::path part = given->file + ".part";
        RETORT_TRY(rest.download(path + "/content", part, bytes, [&](std::uint64_t done) {
          if (terminal)
            std::fprintf(stderr, "\r%s %s",
                         bar(static_cast<double>(done) / static_cast<double>(bytes), 30).c_str(),
                         done == bytes ? "\n" : "");
        }));
        const std::string found = RETORT_TRY(sha256_file_hex(part));
        if (found != sha256) {
          std::filesystem::remove(part);
          return fail(ErrorCode::kCorrupt, given->file, "the bytes hash to {}, not to {}", found, sha256);
        }
        std::filesystem::rename(part, given->file);
        if (program.as_table()) print(fmt::format("{}  {}\n", given->file, format_bytes(bytes)));
        return 0;
      });
  get->add_option("SHA256", given->id)->required();
  get->add_option("FILE", given->file)->required();
  CLI::App* manifest = program.verb(
      app, "manifest", "print its signed manifest (TUF targets metadata)", "",
      [&program, given]() -> Result<int> {
        Rest rest = RETORT_TRY(program.connect());
        print(RETORT_TRY(rest.get_text("/v1/artifacts/" + escape_url(given->id) + "/manifest")).body + "\n");
        return 0;
      });
  manifest->add_option("SHA256", given->id)->required();
}

}  // namespace retort::cli
