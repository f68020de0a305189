#include <unistd.h>
#include <cstdio>

#include "common/core/file.h"
#include "common/core/sha256.h"
#include "common/core/units.h"
#include "coordinator/cli/commands.h"
#include "coordinator/cli/views.h"
#include "coordinator/progress/terminal.h"

namespace retort::cli {
namespace {

struct ArtifactArguments {
  std::string id;
  std::string file;
};

/// Into `file`, which appears only when its bytes are those that it is named by.
Result<void> download(Rest& rest, const std::string& path, const std::string& sha256, std::uint64_t bytes,
                      const std::filesystem::path& file) {
  const bool terminal = ::isatty(STDERR_FILENO) == 1;
  std::filesystem::path part = file;
  part += ".part";
  RETORT_TRY(rest.download(path + "/content", part, bytes, [&](std::uint64_t done) {
    if (terminal)
      std::fprintf(stderr, "\r%s %s", bar(static_cast<double>(done) / static_cast<double>(bytes), 30).c_str(),
                   done == bytes ? "\n" : "");
  }));
  const std::string found = RETORT_TRY(sha256_file_hex(part));
  std::error_code error;
  if (found != sha256) {
    std::filesystem::remove(part, error);
    return fail(ErrorCode::kCorrupt, file.string(), "the bytes hash to {}, not to {}", found, sha256);
  }
  std::filesystem::rename(part, file, error);
  if (error) return fail(ErrorCode::kIo, file.string(), "cannot rename into place: {}", error.message());
  return {};
}

/// The coordinator's artifacts below `folder`, as mirrors serve them (docs/operations.md).
Result<int> mirror(const Program& program, const std::filesystem::path& folder) {
  Rest rest = RETORT_TRY(program.connect());
  std::size_t there = 0, brought = 0;
  for (const json::value& item : RETORT_TRY(items_of(rest, "/v1/artifacts?limit=1000"))) {
    const json::object& artifact = *RETORT_TRY(as_object(item, "/v1/artifacts"));
    const std::string sha256 = RETORT_TRY(json_string(artifact, "sha256", "/v1/artifacts"));
    const std::uint64_t bytes = RETORT_TRY(json_uint(artifact, "bytes", "/v1/artifacts"));
    if (sha256.size() != 64 || sha256.find_first_not_of("0123456789abcdef") != std::string::npos)
      return fail(ErrorCode::kCorrupt, "/v1/artifacts", "'{}' is not a SHA-256", sha256);
    const std::filesystem::path file = folder / sha256.substr(0, 2) / sha256;
    std::error_code error;
    if (std::filesystem::file_size(file, error) == bytes && !error) {
      ++there;
      continue;
    }
    RETORT_TRY(make_folders(file.parent_path()));
    RETORT_TRY(download(rest, "/v1/artifacts/" + sha256, sha256, bytes, file));
    std::filesystem::permissions(file, std::filesystem::perms(0644), error);
    if (error) return fail(ErrorCode::kIo, file.string(), "cannot make it readable: {}", error.message());
    ++brought;
  }
  if (!program.as_table()) return program.show(json::value{{"brought", brought}, {"there", there}});
  print(fmt::format("{} brought, {} were there\n", brought, there));
  return 0;
}

}  // namespace

void add_artifact_commands(Program& program) {
  const auto given = std::make_shared<ArtifactArguments>();
  CLI::App* app = program.noun("artifact", "students, named by the SHA-256 of their file");
  program.add_ls(app, "/v1/artifacts", artifacts_table);
  program.add_show(app, "/v1/artifacts", "SHA256");
  program.add_remove(app, "rm", "remove one that no class, device or rollout is to serve", "/v1/artifacts",
                     "SHA256", "removed");
  CLI::App* get =
      program.verb(app, "get", "download one and check it against its name",
                   "  retort artifact get 3f2a9c01d5e7 student.gguf", [&program, given]() -> Result<int> {
                     Rest rest = RETORT_TRY(program.connect());
                     const std::string path = "/v1/artifacts/" + escape_url(given->id);
                     const json::value artifact = RETORT_TRY(rest.get(path));
                     const json::object* object = RETORT_TRY(as_object(artifact, path));
                     const std::string sha256 = RETORT_TRY(json_string(*object, "sha256", path));
                     const std::uint64_t bytes = RETORT_TRY(json_uint(*object, "bytes", path));
                     RETORT_TRY(download(rest, path, sha256, bytes, given->file));
                     if (program.as_table()) print(fmt::format("{}  {}\n", given->file, format_bytes(bytes)));
                     return 0;
                   });
  get->add_option("SHA256", given->id)->required();
  get->add_option("FILE", given->file)->required();
  CLI::App* copy =
      program.verb(app, "mirror", "bring all into a folder that any web server can serve to devices near it",
                   "  retort artifact mirror /srv/retort\n"
                   "  retort site set hall --mirror http://10.0.0.2:8080",
                   [&program, given] { return mirror(program, given->file); });
  copy->add_option("FOLDER", given->file, "what is there already stays; for cron: again brings what is new")
      ->required();
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
