#pragma once

#include "coordinator/cli/program.h"

/// The commands of retort, a noun a file. Thread: one.
namespace retort::cli {

void add_teacher_commands(Program& program);
void add_dataset_commands(Program& program);
void add_class_commands(Program& program);
void add_site_commands(Program& program);
void add_job_commands(Program& program);
void add_tailor_commands(Program& program);
void add_rollout_commands(Program& program);
void add_artifact_commands(Program& program);
void add_device_commands(Program& program);
void add_token_commands(Program& program);
void add_apply_commands(Program& program);
void add_audit_commands(Program& program);
void add_event_commands(Program& program);
void add_trust_commands(Program& program);
void add_status_commands(Program& program);

}  // namespace retort::cli
