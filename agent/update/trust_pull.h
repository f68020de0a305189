#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "common/trust/artifact_target.h"
#include "common/trust/client.h"
#include "common/wire/messages.h"

namespace retort {

/// Brings metadata of the trust repository over the fleet link, verifies it (common/trust/client.h), keeps it
/// in the spool under "trust/<role>", and with it finds and verifies the manifest of an artifact. One job at
/// a time, the others wait. A lost link stops a job's clock, not the job. Thread: reactor; files are verified
/// and written on the disk pool.
class TrustPull {
 public:
  /// Slower than this, after kPatience, and the file is given up [slow retrieval].
  static constexpr std::uint64_t kMinBytesPerSecond = 1024;
  static constexpr std::chrono::seconds kPatience{20}, kAskAgain{5};

  struct Hooks {
    /// False where there is no link: asked again by on_link().
    std::function<bool(const wire::MetadataRequest&)> ask;
    /// Runs `work` on the disk pool, then `then` on the reactor.
    std::function<void(std::function<void()> work, std::function<void()> then)> on_disk;
    std::function<UnixMillis()> local_time;
    // What outlives the process, on the disk pool: named values, all of a put or none, and the manifest of
    // the pull under way ("" where it is not of this artifact).
    std::function<Result<std::optional<std::string>>(const std::string& key)> get;
    std::function<Result<void>(const std::map<std::string, std::string>& values)> put;
    std::function<std::string(const std::string& artifact)> known_manifest;
  };
  explicit TrustPull(Hooks hooks) : hooks_(std::move(hooks)) {}

  /// What is on disk; before the first job.
  Result<void> load();
  /// None: this device never enrolled, or with a coordinator of 0.1.0 (then it has `old_key`, and the first
  /// job takes the coordinator's first root if that key signed it).
  const std::optional<RootMetadata>& root() const { return root_; }
  /// The root that came with the enrolment, and nothing else: to be put on disk with the identity.
  static Result<std::map<std::string, std::string>> first_root(const std::string& text);
  /// After those values are on disk.
  void begin_with(const std::string& root_text);
  /// The later of the local clock and the signing time of the newest verified timestamp: a clock turned back
  /// does not revive old metadata [freeze].
  UnixMillis trusted_time() const { return std::max(hooks_.local_time(), verified_time_); }

  void refresh(std::function<void(Result<void>)> then);
  /// The manifest's text. kNotFound: the signed targets do not list the artifact.
  void bring(const std::string& artifact, std::function<void(Result<std::string>)> then);

  void on_metadata(const wire::Metadata& metadata);
  /// False: it was not about a file of ours.
  bool on_refused(const wire::Refused& refused);
  void on_link();  ///< a session is up (again)
  void tick();     ///< every second in which the link is up

 private:
  struct Job {
    std::string artifact;  ///< empty: refresh only
    std::function<void(Result<std::string>)> then;
  };
  struct Fetch {
    std::string name;
    std::uint64_t max_bytes = 0;
    std::string bytes;
    std::chrono::seconds up{0}, silent{0};
    std::function<void(Result<std::optional<std::string>>)> then;  ///< nothing: there is no such file
  };
  Result<void> keep(TrustClient::Changes changes, UnixMillis& verified_time);
  void add(Job job);
  void start_next();
  void adopt_first_root();
  void step();
  void look_up();
  void bring_manifest(const ManifestReference& reference);
  void finish(Result<std::string> result);
  void fetch(std::string name, std::uint64_t max_bytes,
             std::function<void(Result<std::optional<std::string>>)> then);
  void end_fetch(Result<std::optional<std::string>> result);
  void ask();

  Hooks hooks_;
  std::optional<RootMetadata> root_;
  std::string old_key_;  ///< hexadecimal
  UnixMillis verified_time_ = 0;
  std::deque<Job> jobs_;
  bool running_ = false, searched_ = false;
  std::shared_ptr<TrustClient> client_;
  std::optional<Fetch> fetch_;
};

}  // namespace retort
