#include "tests/integration/agent/agent_fixture.h"

#include <atomic>
#include <limits>
#include <set>
#include <tuple>

#include "agent/control/record.h"
#include "common/net/key_proof.h"

namespace retort {
namespace {

TEST_F(AgentTest, EnrolsPullsServesAndLivesThroughRestarts) {
  const std::string first = artifact("first"), second = artifact("second");
  coordinator_->desire(first);
  start_agent();
  ASSERT_TRUE(serving(first));
  EXPECT_EQ(text("device_id"), "dev-0123456789abcdef");
  EXPECT_EQ(text("class"), "any");

  // Only the header differs: nothing else is pulled.
  {
    const std::lock_guard lock(coordinator_->mutex);
    coordinator_->requests.clear();
  }
  coordinator_->desire(second);
  ASSERT_TRUE(serving(second));
  {
    const std::lock_guard lock(coordinator_->mutex);
    std::uint64_t asked = 0;
    for (const auto& request : coordinator_->requests) asked += request.length;
    EXPECT_LT(asked, fs::file_size(folder_ / "second.gguf") / 4);
  }
  ASSERT_TRUE(eventually([&] {
    const std::lock_guard lock(coordinator_->mutex);
    return coordinator_->last_status.artifact == second && coordinator_->last_status.state == "idle";
  }));

  // A restarted agent adopts what serves; a second one on the same folder is refused.
  const pid_t serve = serve_pid();
  ProcessSpec other;
  other.arguments = {testing::binary("retort-agent"), "run", "--state", folder_ / "device"};
  int code = 0;
  ::waitpid(*start_process(other), &code, 0);
  EXPECT_NE(code, 0);
  EXPECT_EQ(kill_agent(SIGTERM), 0);
  EXPECT_EQ(::kill(serve, 0), 0) << "the student serves on without its agent";
  start_agent();
  ASSERT_TRUE(serving(second));
  EXPECT_EQ(serve_pid(), serve);
  kill_agent(SIGKILL);
  start_agent();
  ASSERT_TRUE(serving(second));
  EXPECT_EQ(serve_pid(), serve);

  // A killed student comes back; a lost coordinator changes nothing.
  ::kill(serve, SIGKILL);
  ASSERT_TRUE(eventually([&] { return serve_pid() != 0 && serve_pid() != serve && answers(); }));
  coordinator_.reset();
  ASSERT_TRUE(eventually([&] { return text("link") == "down"; }));
  EXPECT_TRUE(answers());
  kill_agent(SIGTERM);
  start_agent();
  ASSERT_TRUE(eventually([&] { return text("artifact") == second && answers(); }));
  EXPECT_EQ(coordinator_, nullptr);
}

TEST_F(AgentTest, ATamperedArtifactIsRefusedAndTheOldOneServesOn) {
  const std::string good = artifact("good");
  testing::TinyModelOptions other = size_;
  other.n_ff = 128;
  ASSERT_OK(testing::write_tiny_model(folder_ / "hf2", ModelFamily::kLlama, 2, other));
  hf_ = std::make_unique<HfModel>(std::move(*open_hf_model(folder_ / "hf2")));
  const std::string bad = artifact("bad");
  coordinator_->desire(good);
  start_agent();
  ASSERT_TRUE(serving(good));
  const pid_t serve = serve_pid();
  {
    const std::lock_guard lock(coordinator_->mutex);
    coordinator_->corrupt_chunks = true;
  }
  coordinator_->desire(bad);
  ASSERT_TRUE(eventually([&] { return text("error_code") == "corrupt" && text("state") == "idle"; }));
  EXPECT_NE(text("last_error").find("hash"), std::string::npos) << text("last_error");
  EXPECT_EQ(text("artifact"), good);
  EXPECT_EQ(serve_pid(), serve);
  EXPECT_TRUE(answers());
  EXPECT_TRUE(eventually([&] {
    const std::lock_guard lock(coordinator_->mutex);
    return coordinator_->last_status.error_code == "corrupt";
  }));
  // An artifact that vanished is a clear state too; and the next good one is served.
  coordinator_->desire(std::string(64, 'a'));
  ASSERT_TRUE(eventually([&] { return text("error_code") == "not_found" && text("state") == "idle"; }));
  {
    const std::lock_guard lock(coordinator_->mutex);
    coordinator_->corrupt_chunks = false;
  }
  coordinator_->desire(bad);
  ASSERT_TRUE(serving(bad));
  EXPECT_EQ(text("last_error"), "");
}

TEST_F(AgentTest, AWrongToken) {
  token_ = "retort-enrol:" + keys_.public_key + ":bad";
  start_agent();
  ASSERT_TRUE(eventually([&] { return text("error_code") == "denied"; }));
  EXPECT_EQ(text("device_id"), "");
  kill_agent(SIGKILL);
  ProcessSpec spec;
  spec.arguments = {testing::binary("retort-agent"),
                    "run",
                    "--state",
                    folder_ / "other",
                    "--coordinator",
                    endpoint_,
                    "--token",
                    "retort-enrol:short"};
  int code = 0;
  ::waitpid(*start_process(spec), &code, 0);
  EXPECT_EQ(WEXITSTATUS(code), 3);
}

TEST_F(AgentTest, AWrongServerKey) {
  token_ = "retort-enrol:" + make_curve_keys().public_key + ":5ec4e7";
  start_agent();
  ASSERT_TRUE(eventually([&] { return text("link") == "down"; }));
  const std::lock_guard lock(coordinator_->mutex);
  EXPECT_EQ(coordinator_->enrolments, 0u);
}

TEST_F(AgentTest, GarbageFromTheCoordinator) {
  const std::string first = artifact("first");
  coordinator_->garbage = true;
  coordinator_->desire(first);
  start_agent();
  EXPECT_TRUE(serving(first));
}

TEST_F(AgentTest, AClockThatIsBehindRevivesNoOldMetadata) {
  const UnixMillis now = SystemClock().unix_millis();
  const std::string good = artifact("good"), next = artifact("next");
  {
    const std::lock_guard lock(coordinator_->mutex);
    coordinator_->repository.timestamp.issued = now + 24 * kHour;  // this device's clock is a day behind
    coordinator_->repository.publish();
  }
  coordinator_->desire(good);
  start_agent();
  ASSERT_TRUE(serving(good));
  {
    // Valid by this device's clock, but not by the time that it has verified already.
    const std::lock_guard lock(coordinator_->mutex);
    coordinator_->repository.timestamp.head.expires = now + 12 * kHour;
    coordinator_->repository.publish();
  }
  coordinator_->desire(next);
  ASSERT_TRUE(eventually([&] { return text("error_code") == "unavailable"; }));
  EXPECT_NE(text("last_error").find("expired"), std::string::npos) << text("last_error");
  EXPECT_EQ(text("artifact"), good);
  EXPECT_TRUE(answers());
}

TEST_F(AgentTest, NobodyElseDirectsADevice) {
  const std::string first = artifact("first"), second = artifact("second");
  coordinator_->desire(first);
  start_agent();
  ASSERT_TRUE(serving(first));
  coordinator_->desire(second);
  ASSERT_TRUE(serving(second));
  // The link in wrong hands: what says nothing, what an attacker signed, another device's, an old one of its
  // own, and one whose time is over.
  const auto attack = [&](wire::Desired desired, const std::string& code) {
    {
      const std::lock_guard lock(coordinator_->mutex);
      coordinator_->send_desired(std::move(desired));
    }
    EXPECT_TRUE(eventually([&] { return text("error_code") == code; }))
        << code << ", is " << text("last_error");
    EXPECT_EQ(text("artifact"), second);
  };
  const TufRepository good = coordinator_->repository, attacker(SystemClock().unix_millis());
  const DesiredState old{9, "any", first};
  attack({old, ""}, "corrupt");
  attack({old, attacker.assignment(kDevice, 9, "any", first)}, "denied");
  attack({old, "{}"}, "corrupt");
  attack({old, good.assignment("dev-another", 9, "any", first)}, "denied");
  TufRepository past = good;
  past.assignment_expires = SystemClock().unix_millis() - kHour;
  attack({old, past.assignment(kDevice, 9, "any", first)}, "unavailable");
  // A replay changes nothing, whatever number stands outside of what is signed.
  {
    const std::lock_guard lock(coordinator_->mutex);
    coordinator_->send_desired({old, good.assignment(kDevice, 1, "any", first)});
  }
  kill_agent(SIGKILL);
  start_agent();
  ASSERT_TRUE(serving(second));
  coordinator_->desire(first);  // generation 3, signed: followed
  EXPECT_TRUE(serving(first));
}

TEST_F(AgentTest, AnAttackerInThePlaceOfTheRepository) {
  const std::string first = artifact("first");
  coordinator_->desire(first);
  start_agent();
  ASSERT_TRUE(serving(first));
  const TufRepository before = coordinator_->repository;
  const auto attempt = [&](TufRepository hostile, const std::string& artifact, const std::string& code,
                           const std::string& said) {
    {
      const std::lock_guard lock(coordinator_->mutex);
      coordinator_->repository = std::move(hostile);
    }
    coordinator_->desire(artifact);
    EXPECT_TRUE(eventually(
        [&] {
          return text("error_code") == code && text("state") == "idle" &&
                 text("last_error").find(said) != std::string::npos;
        },
        60s))
        << said << ", is " << text("last_error");
    EXPECT_EQ(text("artifact"), first);
  };
  const std::string second = artifact("second");
  const TufRepository good = coordinator_->repository;
  {  // arbitrary software: listed by somebody without the keys
    TufRepository hostile = good;
    hostile.keys["targets"] = make_signing_key();
    hostile.publish();
    attempt(hostile, second, "denied", "signed by 0");
  }
  {  // rollback: the metadata of before, under which the artifact is not listed
    TufRepository hostile = before;
    hostile.timestamp.head.version = 0;
    hostile.publish();
    attempt(hostile, second, "denied", "rollback");
  }
  {  // mix-and-match: today's snapshot with other days' targets
    TufRepository hostile = good;
    hostile.publish();
    hostile.files[std::to_string(hostile.targets.head.version) + ".targets.json"] =
        good.files.at(std::to_string(good.targets.head.version) + ".targets.json");
    attempt(hostile, second, "corrupt", "targets");
  }
  {  // a manifest of other bytes than the signed ones
    TufRepository hostile = good;
    hostile.timestamp.head.version += 9;
    hostile.publish();
    hostile.files[manifest_file_name(second)] = hostile.files[manifest_file_name(first)];
    attempt(hostile, second, "corrupt", "manifest");
  }
  EXPECT_TRUE(answers());
  {
    const std::lock_guard lock(coordinator_->mutex);
    coordinator_->repository = good;
    coordinator_->repository.timestamp.head.version += 20;
    coordinator_->repository.snapshot.head.version += 20;
    coordinator_->repository.targets.head.version += 20;
    coordinator_->repository.publish();
  }
  coordinator_->desire(second);
  EXPECT_TRUE(serving(second));
}

TEST_F(AgentTest, EndlessAndSlowMetadata) {
  const std::string first = artifact("first");
  coordinator_->metadata_attack = [](const wire::MetadataRequest& ask, const std::string&) {
    // A timestamp without end.
    return ask.name == "timestamp.json"
               ? std::optional(wire::Metadata{ask.name, ask.offset, 1ull << 40, std::string(200'000, ' ')})
               : std::nullopt;
  };
  coordinator_->desire(first);
  start_agent();
  ASSERT_TRUE(eventually([&] { return text("error_code") == "corrupt" && text("state") == "idle"; }, 60s));
  EXPECT_NE(text("last_error").find("at most 16384"), std::string::npos) << text("last_error");
  {
    // A byte at a time, at the agent's own pace of asking again: it gives up after 20 s.
    const std::lock_guard lock(coordinator_->mutex);
    coordinator_->metadata_attack = [](const wire::MetadataRequest& ask,
                                       const std::string& file) -> std::optional<wire::Metadata> {
      if (ask.name != "timestamp.json") return std::nullopt;
      const std::uint64_t wrong = ask.offset == 0 ? 0 : ask.offset - 1;  // then always an old part
      return wire::Metadata{ask.name, wrong, file.size(), file.substr(wrong, 1)};
    };
  }
  coordinator_->desire(first);
  ASSERT_TRUE(eventually([&] { return text("last_error").find("too slow") != std::string::npos; }, 60s))
      << text("last_error");
  {
    const std::lock_guard lock(coordinator_->mutex);
    coordinator_->metadata_attack = nullptr;
  }
  EXPECT_TRUE(serving(first)) << "the next try finds a coordinator that answers";
}

TEST_F(AgentTest, ANewRootIsFollowedAndLasts) {
  const std::string first = artifact("first"), second = artifact("second");
  coordinator_->desire(first);
  start_agent();
  ASSERT_TRUE(serving(first));
  const TufRepository before = coordinator_->repository;
  {
    const std::lock_guard lock(coordinator_->mutex);
    TufRepository& r = coordinator_->repository;
    std::vector<SigningKey> old{r.replace_key("root")};
    for (const char* role : {"targets", "snapshot", "timestamp", "assignment"}) r.replace_key(role);
    r.publish_root(old);
    r.publish();
  }
  coordinator_->desire(second);  // signed with the new key
  ASSERT_TRUE(serving(second));
  kill_agent(SIGKILL);
  {
    // A thief of the old keys.
    const std::lock_guard lock(coordinator_->mutex);
    coordinator_->send_desired({{50, "any", first}, before.assignment(kDevice, 50, "any", first)});
  }
  start_agent();
  ASSERT_TRUE(eventually([&] { return text("error_code") == "denied"; })) << text("last_error");
  EXPECT_EQ(text("artifact"), second);
}

TEST_F(AgentTest, ANewKeyOnRequestWhateverIsKilled) {
  start_agent();
  ASSERT_TRUE(eventually([&] { return text("link") == "up" && text("state") == "idle"; }));
  const auto heard_with = [&] {
    const std::lock_guard lock(coordinator_->mutex);
    return coordinator_->peer_key;
  };
  const auto asked = [&]() -> std::optional<wire::KeyRotation> {
    const std::lock_guard lock(coordinator_->mutex);
    return coordinator_->rotation;
  };
  const std::string before = heard_with();
  coordinator_->send(wire::RotateKey{});
  ASSERT_TRUE(eventually([&] { return asked().has_value(); }));
  const wire::KeyRotation first = *asked();
  EXPECT_TRUE(check_key_proof(first.proof, first.public_key, keys_.secret_key, kDevice));
  EXPECT_FALSE(check_key_proof(first.proof, first.public_key, keys_.secret_key, "dev-another"));
  EXPECT_FALSE(check_key_proof(first.proof, before, keys_.secret_key, kDevice));
  // Killed before it heard the answer: it comes with the old key, and offers the same new one.
  kill_agent(SIGKILL);
  {
    const std::lock_guard lock(coordinator_->mutex);
    coordinator_->rotation.reset();
    coordinator_->peer_key.clear();
  }
  start_agent();
  ASSERT_TRUE(eventually([&] { return text("link") == "up"; }));
  EXPECT_EQ(heard_with(), before);
  coordinator_->send(wire::RotateKey{});
  ASSERT_TRUE(eventually([&] { return asked().has_value(); }));
  EXPECT_EQ(asked()->public_key, first.public_key);
  coordinator_->send(wire::KeyRotated{"another"});  // not what it asked for: nothing happens
  coordinator_->send(wire::KeyRotated{first.public_key});
  ASSERT_TRUE(eventually([&] { return heard_with() == first.public_key; }));
  kill_agent(SIGKILL);
  start_agent();
  ASSERT_TRUE(eventually([&] { return text("link") == "up"; }));
  EXPECT_EQ(heard_with(), first.public_key);
  EXPECT_FALSE(fs::exists(folder_ / "device/keys/curve.next"));
}

TEST_F(AgentTest, KilledWhileItEnrolsOrChangesItsKeyItComesBack) {
  const auto killed_at = [&](const char* point, const std::function<void()>& cause) {
    kill_agent(SIGTERM);
    ::setenv("RETORT_FAIL_POINT", point, 1);
    start_agent();
    ::unsetenv("RETORT_FAIL_POINT");
    cause();
    int ended = 0;
    ASSERT_TRUE(eventually([&] { return ::waitpid(agent_, &ended, WNOHANG) == agent_; })) << point;
    agent_ = 0;
    ASSERT_TRUE(WIFSIGNALED(ended)) << point;
    std::error_code ignored;
    fs::remove(folder_ / "status.json", ignored);
  };
  const auto enrolments = [&] {
    const std::lock_guard lock(coordinator_->mutex);
    return coordinator_->enrolments;
  };
  killed_at("agent.enrolled.saving", [] {});
  EXPECT_EQ(enrolments(), 1u);
  killed_at("agent.enrolled.saved", [] {});
  EXPECT_EQ(enrolments(), 2u) << "the first answer was not on disk: it asked again";
  start_agent();
  ASSERT_TRUE(eventually([&] { return text("link") == "up"; }));
  EXPECT_EQ(enrolments(), 2u);
  for (const char* point : {"agent.key.saving", "agent.key.saved"}) {
    std::string offered;
    const auto change = [&] {
      ASSERT_TRUE(eventually([&] { return text("link") == "up"; }));
      {
        const std::lock_guard lock(coordinator_->mutex);
        coordinator_->rotation.reset();
      }
      coordinator_->send(wire::RotateKey{});
      ASSERT_TRUE(eventually([&] {
        const std::lock_guard lock(coordinator_->mutex);
        if (coordinator_->rotation) offered = coordinator_->rotation->public_key;
        return !offered.empty();
      }));
    };
    killed_at(point, [&] {
      change();
      coordinator_->send(wire::KeyRotated{offered});
    });
    const std::string kept = offered;
    start_agent();
    offered.clear();
    if (point == std::string("agent.key.saving")) {
      change();
      EXPECT_EQ(offered, kept) << "the same key is offered again";
      coordinator_->send(wire::KeyRotated{offered});
    }
    ASSERT_TRUE(eventually([&] {
      const std::lock_guard lock(coordinator_->mutex);
      return coordinator_->peer_key == kept && text("link") == "up";
    })) << point;
  }
}

TEST_F(AgentTest, AStudentThatCannotServeIsRolledBack) {
  const std::string first = artifact("first"), second = artifact("second");
  // A retort-serve that refuses to start while the file "broken" is there.
  const fs::path wrapper = folder_ / "serve.sh";
  ASSERT_OK(write_file_atomic(wrapper,
                              "#!/bin/sh\n[ -e " + (folder_ / "broken").string() + " ] && exit 3\nexec " +
                                  testing::binary("retort-serve").string() + " \"$@\"\n",
                              0755));
  coordinator_->desire(first);
  start_agent({"--serve-binary", wrapper});
  ASSERT_TRUE(serving(first));
  const pid_t serve = serve_pid();
  ASSERT_OK(write_file_atomic(folder_ / "broken", ""));
  coordinator_->desire(second);
  ASSERT_TRUE(eventually([&] { return text("error_code") == "unavailable" && text("state") == "idle"; }));
  EXPECT_EQ(serve_pid(), serve);
  EXPECT_EQ(text("artifact"), first);
  EXPECT_TRUE(answers());
  fs::remove(folder_ / "broken");
  coordinator_->desire(second);
  ASSERT_TRUE(serving(second));
}

TEST_F(AgentTest, AFirstStudentThatIsKilledInProbationIsTriedAgain) {
  const std::string first = artifact("first");
  coordinator_->desire(first);
  probation_ = "2";
  start_agent();
  ASSERT_TRUE(eventually([&] { return text("state") == "probation" && answers(); }));
  const pid_t serve = serve_pid();
  ::kill(serve, SIGKILL);
  ASSERT_TRUE(serving(first));
  EXPECT_NE(serve_pid(), serve);
}

TEST_F(AgentTest, ADeviceThatLostItsStateServesOnAndEnrolsAnew) {
  const std::string first = artifact("first");
  coordinator_->desire(first);
  start_agent({"--stop-serve-on-exit"});
  ASSERT_TRUE(serving(first));
  kill_agent(SIGTERM);
  ASSERT_OK(write_file_atomic(folder_ / "device/state.db", std::string(16384, 'g')));
  // Without a token: it serves what its slot has.
  const std::string token = std::exchange(token_, "");
  start_agent({"--stop-serve-on-exit"});
  ASSERT_TRUE(eventually([&] { return text("artifact") == first && answers(); }));
  EXPECT_EQ(text("link"), "off");
  EXPECT_EQ(text("error_code"), "corrupt");
  EXPECT_TRUE(fs::exists(folder_ / "device/state.db.damaged"));
  kill_agent(SIGTERM);
  token_ = token;
  start_agent({"--stop-serve-on-exit"});
  ASSERT_TRUE(serving(first));
  EXPECT_TRUE(eventually([&] { return text("link") == "up" && text("last_error").empty(); }));
}

TEST_F(AgentTest, WithoutItsStateItServesNoStudentThatIsDamagedOrWasGivenUp) {
  const std::string first = artifact("first"), second = artifact("second");
  const fs::path wrapper = folder_ / "serve.sh";  // refuses the second while the file "broken" is there
  ASSERT_OK(write_file_atomic(wrapper,
                              "#!/bin/sh\n[ -e " + (folder_ / "broken").string() +
                                  " ] && case \"$2\" in */b/*) exit 3;; esac\nexec " +
                                  testing::binary("retort-serve").string() + " \"$@\"\n",
                              0755));
  coordinator_->desire(first);
  start_agent({"--stop-serve-on-exit", "--serve-binary", wrapper});
  ASSERT_TRUE(serving(first));
  ASSERT_OK(write_file_atomic(folder_ / "broken", ""));
  coordinator_->desire(second);
  ASSERT_TRUE(eventually([&] { return text("error_code") == "unavailable" && text("state") == "idle"; }));
  const auto lose_state = [&] {
    kill_agent(SIGTERM);
    fs::remove(folder_ / "broken");
    EXPECT_OK(write_file_atomic(folder_ / "device/state.db", ""));
    endpoint_ = "tcp://127.0.0.1:1";
    start_agent({"--stop-serve-on-exit"});
  };
  lose_state();
  ASSERT_TRUE(eventually([&] { return text("artifact") == first && answers(); }))
      << "the second was given up";
  kill_agent(SIGTERM);
  // Now the second is the one that came last, and it is damaged.
  fs::last_write_time(folder_ / "device/slots/b/manifest.json", fs::file_time_type::clock::now() + 1h);
  {
    const File file = *File::open_write(folder_ / "device/slots/b/model.gguf", false);
    ASSERT_OK(file.write_all_at(*file.size() / 2, std::string(512, '\0')));
  }
  start_agent({"--stop-serve-on-exit"});
  lose_state();
  EXPECT_TRUE(eventually([&] { return text("artifact") == first && answers(); }));
}

TEST_F(AgentTest, ATornKeyIsPutAsideAndTheStudentServes) {
  const std::string first = artifact("first");
  coordinator_->desire(first);
  start_agent({"--stop-serve-on-exit"});
  ASSERT_TRUE(serving(first));
  kill_agent(SIGTERM);
  ASSERT_OK(write_file_atomic(folder_ / "device/keys/curve", "torn"));
  start_agent({"--stop-serve-on-exit"});
  EXPECT_TRUE(eventually([&] { return text("artifact") == first && answers(); }));
  EXPECT_TRUE(fs::exists(folder_ / "device/keys/curve.unusable"));
}

TEST_F(AgentTest, StudentsAreAdoptedFromWhereTheRunFolderWas) {
  const std::string first = artifact("first");
  coordinator_->desire(first);
  start_agent();
  ASSERT_TRUE(serving(first));
  const pid_t serve = serve_pid();
  kill_agent(SIGKILL);
  start_agent({"--run", folder_ / "elsewhere"});
  ASSERT_TRUE(serving(first));
  EXPECT_EQ(serve_pid(), serve);
  EXPECT_EQ(fs::read_symlink(folder_ / "device/run"), folder_ / "elsewhere");
  kill_agent(SIGKILL);
  fs::remove_all(folder_ / "elsewhere");  // as memory is after a restart of the machine
  ::kill(serve, SIGKILL);
  start_agent();
  ASSERT_TRUE(serving(first));
  EXPECT_FALSE(fs::is_symlink(folder_ / "device/run"));
}

TEST_F(AgentTest, AnEncoderServesOnceItsVectorsAreNumbers) {
  ASSERT_OK(testing::write_tiny_model(folder_ / "bert", ModelFamily::kBert, 1));
  hf_ = std::make_unique<HfModel>(std::move(*open_hf_model(folder_ / "bert")));
  const std::string good = artifact("good");
  std::vector<TensorSource> weights = weight_sources(*hf_);
  weights.back().read = [](std::span<float> out) -> Result<void> {
    std::fill(out.begin(), out.end(), 3e38f);  // whose squares overflow
    return {};
  };
  const std::string bad = artifact("bad", weights);
  coordinator_->desire(good);
  start_agent();
  ASSERT_TRUE(serving(good));
  const pid_t serve = serve_pid();
  coordinator_->desire(bad);
  ASSERT_TRUE(eventually([&] { return text("error_code") == "invalid" && text("state") == "idle"; }));
  EXPECT_NE(text("last_error").find("not finite"), std::string::npos) << text("last_error");
  EXPECT_EQ(serve_pid(), serve);
  EXPECT_EQ(text("artifact"), good);
  EXPECT_TRUE(answers());
}

TEST_F(AgentTest, ACrashLoopGoesBackToThePreviousStudent) {
  const std::string first = artifact("first"), second = artifact("second");
  coordinator_->desire(first);
  start_agent();
  ASSERT_TRUE(serving(first));
  coordinator_->desire(second);
  ASSERT_TRUE(serving(second));
  for (pid_t last = 0; text("artifact") != first;) {
    ASSERT_TRUE(eventually([&] { return text("artifact") == first || (serve_pid() != last && answers()); }));
    if (text("artifact") == first) break;
    last = serve_pid();
    ::kill(last, SIGKILL);
  }
  ASSERT_TRUE(serving(first));
  EXPECT_NE(text("last_error").find("crash loop"), std::string::npos);
}

TEST_F(AgentTest, ARevokedDeviceServesOnAndDoesNotComeBackWithItsOldToken) {
  const std::string first = artifact("first");
  coordinator_->desire(first);
  start_agent();
  ASSERT_TRUE(serving(first));
  kill_agent(SIGTERM);
  {
    const std::lock_guard lock(coordinator_->mutex);
    coordinator_->revoked = true;
  }
  for (int start = 0; start < 2; ++start) {
    start_agent();
    ASSERT_TRUE(
        eventually([&] { return text("link") == "revoked" && text("artifact") == first && answers(); }));
    kill_agent(SIGTERM);
  }
  {
    const std::lock_guard lock(coordinator_->mutex);
    EXPECT_EQ(coordinator_->enrolments, 1u);
    coordinator_->revoked = false;
    coordinator_->token = "0e3";
  }
  token_ = "retort-enrol:" + keys_.public_key + ":0e3";
  start_agent();
  ASSERT_TRUE(serving(first));
  EXPECT_TRUE(eventually([&] { return text("link") == "up"; }));
}

TEST_F(AgentTest, AHangingStudentIsReplaced) {
  const std::string first = artifact("first");
  coordinator_->desire(first);
  start_agent();
  ASSERT_TRUE(serving(first));
  const pid_t serve = serve_pid();
  ::kill(serve, SIGSTOP);
  EXPECT_TRUE(eventually([&] { return serve_pid() != 0 && serve_pid() != serve && answers(); }, 60s));
}

TEST_F(AgentTest, WithoutMemoryForTwoTheOldOneRestsMeanwhile) {
  const std::string first = artifact("first"), second = artifact("second");
  coordinator_->desire(first);
  start_agent({"--memory-budget", "36MiB", "--serve-port", "0"});
  ASSERT_TRUE(serving(first));
  coordinator_->desire(second);
  ASSERT_TRUE(serving(second));
  EXPECT_NE(read_file(folder_ / "agent.log").value_or("").find("stop-swap"), std::string::npos);
  coordinator_->desire("");
  EXPECT_TRUE(eventually([&] { return text("artifact").empty() && text("state") == "idle"; }));
}

TEST_F(AgentTest, ANewerDesiredStateSupersedesOneThatHangs) {
  const fs::path script = folder_ / "serve.sh";
  ASSERT_OK(write_file_atomic(
      script,
      fmt::format("#!/bin/sh\ngrep -qa hangs-for-ever \"$2\" && exec sleep 600\nexec {} \"$@\"\n",
                  testing::binary("retort-serve").string()),
      0700));
  const std::string first = artifact("first"), hangs = artifact("hangs-for-ever"),
                    second = artifact("second");
  coordinator_->desire(first);
  start_agent({"--serve-binary", script});
  ASSERT_TRUE(serving(first));
  coordinator_->desire(hangs);
  ASSERT_TRUE(eventually([&] { return text("state") == "probe"; }));
  EXPECT_TRUE(answers()) << "the old one serves meanwhile";
  coordinator_->desire(second);
  ASSERT_TRUE(serving(second));
  EXPECT_EQ(text("last_error"), "");
}

TEST_F(AgentTest, TheWayBackNeedsNoDownload) {
  const std::string first = artifact("first"), second = artifact("second");
  coordinator_->desire(first);
  start_agent();
  ASSERT_TRUE(serving(first));
  coordinator_->desire(second);
  ASSERT_TRUE(serving(second));
  {
    const std::lock_guard lock(coordinator_->mutex);
    coordinator_->requests.clear();
  }
  coordinator_->desire(first);
  ASSERT_TRUE(serving(first));
  {
    const std::lock_guard lock(coordinator_->mutex);
    EXPECT_EQ(coordinator_->requests.size(), 0u);
  }
  // What lies in the slot is hashed all the same: where it was damaged, it is brought again.
  const fs::path model = folder_ / "device/slots/b/model.gguf";
  ASSERT_TRUE(fs::exists(model));
  std::string bytes = *read_file(model);
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
  ASSERT_OK(write_file_atomic(model, bytes));
  coordinator_->desire(second);
  ASSERT_TRUE(serving(second));
  EXPECT_EQ(*sha256_file_hex(model), second);
}

TEST_F(AgentTest, WhatAPowerCutTookOfAStudentIsNoticedBeforeItServes) {
  const std::string first = artifact("first"), second = artifact("second");
  coordinator_->desire(first);
  start_agent();
  ASSERT_TRUE(serving(first));
  coordinator_->desire(second);
  ASSERT_TRUE(serving(second));

  // The one before serves meanwhile, also without a coordinator.
  lose_power("b");
  const std::string coordinator = endpoint_;
  endpoint_ = "tcp://127.0.0.1:1";
  start_agent();
  ASSERT_TRUE(eventually([&] { return text("artifact") == first && answers(); }));
  EXPECT_EQ(text("state"), "fetch") << "as soon as there is a coordinator";
  kill_agent(SIGTERM);
  endpoint_ = coordinator;
  start_agent();
  ASSERT_TRUE(serving(second));
  EXPECT_EQ(text("last_error"), "");

  // Both are lost.
  lose_power("a");
  lose_power("b");
  start_agent();
  ASSERT_TRUE(serving(second));

  // Lost without a power cut, so that it does not even load.
  const std::string slot = text("slot");
  const pid_t serve = serve_pid();
  fs::resize_file(folder_ / "device/slots" / slot / "model.gguf", 100);
  ::kill(serve, SIGKILL);
  ASSERT_TRUE(eventually([&] { return serve_pid() != serve && text("artifact") == second && answers(); }));

  // A candidate that was staged.
  kill_agent(SIGTERM);
  const std::string third = artifact("third");
  ::setenv("RETORT_FAIL_POINT", "agent.probe.saved", 1);
  start_agent();
  ::unsetenv("RETORT_FAIL_POINT");
  coordinator_->desire(third);
  ASSERT_TRUE(eventually([&] { return ::waitpid(agent_, nullptr, WNOHANG) == agent_; }));
  agent_ = 0;
  lose_power(other_slot(slot));
  start_agent();
  ASSERT_TRUE(serving(third));
  EXPECT_EQ(text("last_error"), "");
}

TEST_F(AgentTest, TheOneBeforeServesWhereTheServedOneIsLostInMidPull) {
  const std::string first = artifact("first"), second = artifact("second"), third = artifact("third");
  coordinator_->desire(first);
  start_agent();
  ASSERT_TRUE(serving(first));
  coordinator_->desire(second);
  ASSERT_TRUE(serving(second));
  const auto mute = [&](bool now) {
    const std::lock_guard lock(coordinator_->mutex);
    coordinator_->mute_chunks = now;
  };
  mute(true);
  coordinator_->desire(third);
  ASSERT_TRUE(eventually([&] { return text("state") == "fetch"; }));
  lose_power("b");
  const std::string coordinator = std::exchange(endpoint_, "tcp://127.0.0.1:1");
  start_agent();
  ASSERT_TRUE(eventually([&] { return text("artifact") == first && answers(); }));
  kill_agent(SIGTERM);
  mute(false);
  endpoint_ = coordinator;
  start_agent();
  ASSERT_TRUE(serving(third));
}

TEST_F(AgentTest, SealedStudentsAreNowhereOnTheDiskAndOfUseOnThisDeviceAlone) {
  const std::string first = artifact("first"), second = artifact("second");
  const auto leaked = [&] {
    const std::string model = *read_file(folder_ / "first.gguf");
    const std::string weights = model.substr(model.size() / 2, 64);
    std::string found;
    for (const auto& entry : fs::recursive_directory_iterator(folder_ / "device"))
      if (const auto text = entry.is_regular_file() ? read_file(entry.path()) : Result<std::string>(""))
        if (text->find(weights) != std::string::npos || text->find("tokenizer.ggml") != std::string::npos)
          found += entry.path().string() + " ";
    return found;
  };
  const auto comes_back = [&](const std::string& sha256) {
    const pid_t serve = serve_pid();
    ::kill(serve, SIGKILL);
    return eventually([&] { return serve_pid() != serve && text("artifact") == sha256 && answers(); });
  };
  const auto sealed = [&] { return json_bool(status(), "sealed", "").value_or(false); };
  coordinator_->desire(first);
  start_agent({"--seal"});
  ASSERT_TRUE(serving(first));
  EXPECT_TRUE(sealed());
  EXPECT_EQ(leaked(), "");
  EXPECT_TRUE(comes_back(first));
  EXPECT_EQ(leaked(), "") << "packed weights neither";

  // The next one takes what it has of this one.
  {
    const std::lock_guard lock(coordinator_->mutex);
    coordinator_->requests.clear();
  }
  coordinator_->desire(second);
  ASSERT_TRUE(serving(second));
  {
    const std::lock_guard lock(coordinator_->mutex);
    std::uint64_t asked = 0;
    for (const auto& request : coordinator_->requests) asked += request.length;
    EXPECT_LT(asked, fs::file_size(folder_ / "second.gguf") / 4);
  }

  // A new device key opens what was sealed before.
  const std::string old_key = read_file(folder_ / "device/keys/curve")->substr(0, 40);
  coordinator_->send(wire::RotateKey{});
  ASSERT_TRUE(eventually([&] {
    const std::lock_guard lock(coordinator_->mutex);
    return coordinator_->rotation.has_value();
  }));
  coordinator_->send(wire::KeyRotated{coordinator_->rotation->public_key});
  const fs::path boxes = folder_ / "device/keys/seal";
  ASSERT_TRUE(eventually([&] {
    const std::string text = read_file(boxes).value_or("");
    return text.find(coordinator_->rotation->public_key) != std::string::npos &&
           text.find(old_key) == std::string::npos;
  }));
  kill_agent(SIGKILL);
  start_agent({"--seal"});
  ASSERT_TRUE(serving(second));
  EXPECT_TRUE(comes_back(second));

  // Without the key there is nothing to be had.
  ProcessSpec spec;
  const std::string slot = text("slot");
  spec.arguments = {testing::binary("retort-serve"), "info", folder_ / "device/slots" / slot / "model.gguf"};
  spec.stdout_file = spec.stderr_file = folder_ / "info.log";
  int code = 0;
  ::waitpid(*start_process(spec), &code, 0);
  EXPECT_EQ(WEXITSTATUS(code), 6);
  EXPECT_NE(read_file(folder_ / "info.log")->find("sealed to a device's key (artifact " + second),
            std::string::npos);

  // The disk in another device: what it holds is pulled again.
  const pid_t serve = serve_pid();
  kill_agent(SIGKILL);
  ::kill(serve, SIGKILL);
  fs::remove(folder_ / "device/keys/curve");
  start_agent({"--seal"});
  ASSERT_TRUE(serving(second));
  EXPECT_NE(read_file(folder_ / "agent.log")->find("is for another device's key"), std::string::npos);
  EXPECT_TRUE(fs::exists(folder_ / "device/keys/seal.unusable"));
  EXPECT_EQ(leaked(), "");

  // Turned off: what is sealed serves on, the next one lies as it is. Turned on again: that is sealed.
  kill_agent(SIGTERM);
  start_agent();
  ASSERT_TRUE(serving(second));
  EXPECT_TRUE(comes_back(second));
  coordinator_->desire(first);
  ASSERT_TRUE(serving(first));
  EXPECT_FALSE(sealed());
  EXPECT_NE(leaked(), "");
  kill_agent(SIGTERM);
  start_agent({"--seal"});
  ASSERT_TRUE(serving(first));
  EXPECT_TRUE(eventually([&] { return sealed() && leaked().empty(); })) << leaked();
  EXPECT_TRUE(comes_back(first));
}

TEST_F(LargerAgentTest, ASealedPullLosesNoMoreThanAnother) {
  EXPECT_LE(asked_again_after_a_kill({"--seal", "--keys", folder_ / "elsewhere"}), 5u)
      << "the four in flight and at most one more";
  EXPECT_FALSE(fs::exists(folder_ / "device/keys"));
}

TEST_F(AgentTest, TelemetryAndTheCanaryWhereTheClockIsWrong) {
  // As after a boot without a clock: 1970 for the device, half a century later for its coordinator.
  coordinator_->clock_offset = 50ll * 365 * 24 * 3600 * 1000;
  const std::string first = artifact("first");
  coordinator_->desire(first);
  start_agent();
  ASSERT_TRUE(serving(first));
  // What the student answers is what the student answers.
  const std::string url = text("serve_url");
  const auto port = static_cast<std::uint16_t>(std::atoi(url.c_str() + url.rfind(':') + 1));
  const auto answer = complete("127.0.0.1", port, "the", 1, 5s);
  ASSERT_OK(answer);
  const auto answered = [&] {
    const std::lock_guard lock(coordinator_->mutex);
    return coordinator_->canary.has_value();
  };
  coordinator_->ask(
      {"roll-1", std::string(64, 'e'), {{"the", *answer}}});  // of a student that is not here: no answer
  coordinator_->ask({"roll-1", first, {{"the", *answer}, {"the", *answer + "x"}, {"the", *answer}}});
  ASSERT_TRUE(eventually(answered));
  const auto of_requests = [&]() -> std::optional<TelemetryPoint> {
    const std::lock_guard lock(coordinator_->mutex);
    for (const TelemetryPoint& point : coordinator_->points)
      if (point.metric == "serve_requests") return point;
    return std::nullopt;
  };
  {
    const std::lock_guard lock(coordinator_->mutex);
    EXPECT_EQ(coordinator_->canary->artifact, first);
    EXPECT_EQ(coordinator_->canary->asked, 3u);
    EXPECT_EQ(coordinator_->canary->agreed, 2u);
  }
  ASSERT_TRUE(eventually([&] {
    std::ignore = complete("127.0.0.1", port, "the", 1, 5s);
    return of_requests().has_value();
  }));
  const UnixMillis now = SystemClock().unix_millis() + coordinator_->clock_offset;
  EXPECT_LT(std::abs(of_requests()->time - now), 60'000) << "the coordinator's time";
}

TEST_F(AgentTest, KilledAtEveryStepOfTheMachineItGoesOn) {
  const std::string first = artifact("first");
  coordinator_->desire(first);
  start_agent();
  ASSERT_TRUE(serving(first));
  std::string before = first;
  for (const std::string point :
       {"fetch.saving", "fetch.saved", "trust.saving", "trust.saved", "verify.saving", "verify.saved",
        "stage.saving", "stage.saved", "probe.saving", "probe.saved", "serve.saving", "serve.saved",
        "probation.saving", "probation.saved", "commit.saving", "commit.saved", "idle.saving",
        "idle.saved"}) {
    kill_agent(SIGTERM);
    const std::string next = artifact("after-" + point);
    ::setenv("RETORT_FAIL_POINT", ("agent." + point).c_str(), 1);
    start_agent();
    ::unsetenv("RETORT_FAIL_POINT");
    coordinator_->desire(next);
    int ended = 0;
    ASSERT_TRUE(eventually([&] { return ::waitpid(agent_, &ended, WNOHANG) == agent_; })) << point;
    agent_ = 0;
    ASSERT_TRUE(WIFSIGNALED(ended)) << point;
    // The student that was served before, or the next one, serves on without an agent (none while they swap).
    std::error_code ignored;
    fs::remove(folder_ / "status.json", ignored);
    start_agent();
    ASSERT_TRUE(serving(next)) << point;
    EXPECT_EQ(text("last_error"), "") << point;
  }
}

TEST_F(LargerAgentTest, ABreakLosesOneChunkAtMost) {
  const std::string first = artifact("first");
  coordinator_->chunk_delay = 5ms;
  coordinator_->desire(first);
  start_agent();
  const auto in_mid_pull = [&](std::size_t chunks) {
    ASSERT_TRUE(eventually([&] {
      const std::lock_guard lock(coordinator_->mutex);
      return coordinator_->answered.size() >= chunks;
    }));
    const std::lock_guard lock(coordinator_->mutex);
    coordinator_->mute_chunks = true;
  };
  in_mid_pull(6);
  std::this_thread::sleep_for(200ms);  // what was sent is there now
  std::set<std::uint64_t> sent = coordinator_->answered;
  const auto asked_again = [&](const Coordinator& coordinator) {
    return std::count_if(coordinator.requests.begin(), coordinator.requests.end(),
                         [&](const wire::ChunkRequest& request) { return sent.count(request.offset) != 0; });
  };
  // The link is cut, and another coordinator of the same keys is there.
  const TufRepository repository = coordinator_->repository;
  coordinator_.reset();
  coordinator_ = std::make_unique<Coordinator>(keys_, endpoint_);
  ASSERT_TRUE(coordinator_->bound());
  {
    const std::lock_guard lock(coordinator_->mutex);
    coordinator_->repository = repository;
  }
  coordinator_->add(folder_ / "first.gguf");
  coordinator_->chunk_delay = 5ms;
  coordinator_->desire(first);
  in_mid_pull(12);
  std::this_thread::sleep_for(200ms);
  {
    const std::lock_guard lock(coordinator_->mutex);
    EXPECT_LE(asked_again(*coordinator_), 1);
    sent.insert(coordinator_->answered.begin(), coordinator_->answered.end());
    coordinator_->requests.clear();
  }
  // The agent is killed.
  kill_agent(SIGKILL);
  {
    const std::lock_guard lock(coordinator_->mutex);
    coordinator_->mute_chunks = false;
  }
  start_agent();
  ASSERT_TRUE(serving(first));
  const std::lock_guard lock(coordinator_->mutex);
  EXPECT_LE(asked_again(*coordinator_), 1);
}

TEST_F(LargerAgentTest, TheCoordinatorMayHaveItWait) {
  const std::string first = artifact("first");
  coordinator_->mute_chunks = true;
  coordinator_->desire(first);
  start_agent();
  const auto requested = [&] {
    const std::lock_guard lock(coordinator_->mutex);
    return coordinator_->requests.size();
  };
  ASSERT_TRUE(eventually([&] { return requested() == 4; }));
  const auto begin = std::chrono::steady_clock::now();
  coordinator_->send(wire::ChunkWait{first, 4000});
  ASSERT_TRUE(eventually([&] { return requested() > 4; })) << "then it asks again";
  EXPECT_GT(std::chrono::steady_clock::now() - begin, 12s) << "ten seconds, beside those that it was to wait";
  {
    const std::lock_guard lock(coordinator_->mutex);
    coordinator_->mute_chunks = false;
    coordinator_->requests.clear();
  }
  ASSERT_TRUE(serving(first));
  EXPECT_EQ(text("last_error"), "");
}

TEST_F(LargerAgentTest, NothingIsLeftOfAPullThatIsNotWantedAnyMore) {
  const std::string first = artifact("first");
  coordinator_->chunk_delay = 20ms;
  coordinator_->desire(first);
  start_agent();
  const fs::path part = folder_ / "device/slots/a/model.gguf.part";
  ASSERT_TRUE(eventually([&] { return fs::exists(part); }));
  coordinator_->desire("");
  EXPECT_TRUE(eventually([&] { return text("state") == "idle" && !fs::exists(part); }));
  // What a crash left is gone at the next start.
  kill_agent(SIGKILL);
  ASSERT_OK(write_file_atomic(folder_ / "device/slots/b/model.gguf.part", "half"));
  start_agent();
  EXPECT_TRUE(eventually([&] { return !fs::exists(folder_ / "device/slots/b/model.gguf.part"); }));
}

TEST_F(LargerAgentTest, KilledInMidPullItGoesOnWhereItWas) {
  EXPECT_LE(asked_again_after_a_kill(), 5u) << "the four in flight and at most one more";
  EXPECT_GT(fs::file_size(folder_ / "first.gguf"), 8u << 20);
}

}  // namespace
}  // namespace retort
