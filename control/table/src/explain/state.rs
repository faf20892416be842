//! The states of flows, with the names of the kernel's conntrack.

use nomagic_api::flows::FlowState;
use nomagic_core::conntrack::PhaseKind;

/// The state of a flow in this phase.
pub fn of(kind: PhaseKind) -> FlowState {
    match kind {
        PhaseKind::SynSent => FlowState::SynSent,
        PhaseKind::SynReceived => FlowState::SynRecv,
        PhaseKind::Established => FlowState::Established,
        PhaseKind::FinWait => FlowState::FinWait,
        PhaseKind::CloseWait => FlowState::CloseWait,
        PhaseKind::LastAck => FlowState::LastAck,
        PhaseKind::TimeWait => FlowState::TimeWait,
        PhaseKind::Closed => FlowState::Close,
        PhaseKind::PickedUp | PhaseKind::PickedUpReply => FlowState::PickedUp,
        PhaseKind::Unreplied => FlowState::Unreplied,
        PhaseKind::Replied => FlowState::Replied,
        PhaseKind::Stream | PhaseKind::Confirmed => FlowState::Assured,
    }
}
