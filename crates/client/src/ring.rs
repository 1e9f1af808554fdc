//! Whose turn it is. Pure: what a connection is, and how it comes about, is somebody else's business.

use super::address::Address;

/// Servers in a ring, each with its connection or without.
#[derive(Debug)]
pub(super) struct Ring<C> {
    members: Vec<Member<C>>,
    /// The member to look at first.
    turn: usize,
    /// Why there are no members, if somebody looked.
    empty: Option<String>,
}

#[derive(Debug)]
struct Member<C> {
    address: Address,
    state: State<C>,
}

/// What is known of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State<C> {
    /// A first connection, or one in place of one that was good, is on its way: worth a short wait.
    Connecting,
    /// Calls may go there.
    Ready(C),
    /// It could not be reached, for this reason, and is tried again after a while: not worth a wait.
    Aside(String),
}

/// Where the next call goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Turn<C> {
    /// There.
    To(C),
    /// Nowhere yet, but it is worth waiting for news.
    Wait,
    /// No server can be reached; why not, of one of them.
    Nobody(String),
}

impl<C: Clone> Ring<C> {
    pub(super) fn new() -> Self {
        Self { members: Vec::new(), turn: 0, empty: None }
    }

    /// Takes the next member that is ready: each in turn.
    pub(super) fn next(&mut self) -> Turn<C> {
        let count = self.members.len();
        for at in (self.turn..self.turn + count).map(|at| at % count) {
            if let Some(Member { state: State::Ready(connection), .. }) = self.members.get(at) {
                let connection = connection.clone();
                self.turn = at + 1;
                return Turn::To(connection);
            }
        }
        if self.is_settled() { Turn::Nobody(self.why()) } else { Turn::Wait }
    }

    /// True once every member is known to be ready or not to be reached. A ring without members is settled when somebody
    /// found out that there are none.
    pub(super) fn is_settled(&self) -> bool {
        let is_known = |member: &Member<C>| !matches!(member.state, State::Connecting);
        if self.members.is_empty() { self.empty.is_some() } else { self.members.iter().all(is_known) }
    }

    /// Why no member can be reached; nothing where one can.
    pub(super) fn nobody(&self) -> Option<String> {
        let is_ready = |member: &Member<C>| matches!(member.state, State::Ready(_));
        (self.is_settled() && !self.members.iter().any(is_ready)).then(|| self.why())
    }

    fn why(&self) -> String {
        let aside = self.members.iter().find_map(|member| match &member.state {
            State::Aside(why) => Some(format!("{}: {why}", member.address.dial)),
            State::Connecting | State::Ready(_) => None,
        });
        aside.or_else(|| self.empty.clone()).unwrap_or_default()
    }

    /// Makes `addresses` the members: those that stay keep their state. Returns those that are new.
    pub(super) fn update(&mut self, addresses: &[Address]) -> Vec<Address> {
        self.members.retain(|member| addresses.contains(&member.address));
        let mut new = Vec::new();
        for address in addresses {
            if !self.members.iter().any(|member| member.address == *address) {
                self.members.push(Member { address: address.clone(), state: State::Connecting });
                new.push(address.clone());
            }
        }
        new
    }

    /// There are no members, for this reason.
    pub(super) fn found_none(&mut self, why: String) {
        self.empty = Some(why);
    }

    /// Writes down what is known of a member. One that has left is not missed.
    pub(super) fn put(&mut self, address: &Address, state: State<C>) {
        if let Some(member) = self.members.iter_mut().find(|member| member.address == *address) {
            member.state = state;
        }
    }

    /// Takes a connection out that turned out to be at its end.
    pub(super) fn lost(&mut self, is_it: impl Fn(&C) -> bool) {
        for member in &mut self.members {
            if matches!(&member.state, State::Ready(connection) if is_it(connection)) {
                member.state = State::Connecting;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(number: usize) -> Address {
        Address { dial: format!("host-{number}:1"), authority: "host:1".to_owned() }
    }

    fn ring(states: &[State<usize>]) -> Ring<usize> {
        let addresses: Vec<_> = (0..states.len()).map(address).collect();
        let mut ring = Ring::new();
        ring.update(&addresses);
        addresses.iter().zip(states).for_each(|(address, state)| ring.put(address, state.clone()));
        ring
    }

    #[test]
    fn who_is_aside_is_passed_over_and_the_others_share_evenly() {
        let aside = || State::Aside("refused".to_owned());
        let mut ring = ring(&[State::Ready(0), aside(), State::Ready(2)]);
        assert_eq!([(); 4].map(|()| ring.next()), [0, 2, 0, 2].map(Turn::To));
        ring.put(&address(1), State::Ready(1));
        assert_eq!([(); 4].map(|()| ring.next()), [0, 1, 2, 0].map(Turn::To));
        ring.lost(|connection| *connection == 1);
        assert_eq!([(); 2].map(|()| ring.next()), [2, 0].map(Turn::To));
    }

    #[test]
    fn who_connects_is_waited_for_and_who_cannot_be_reached_is_not() {
        let mut ring = ring(&[State::Connecting, State::Aside("refused".to_owned())]);
        assert_eq!((ring.next(), ring.is_settled(), ring.nobody()), (Turn::Wait, false, None));
        ring.put(&address(0), State::Aside("timed out".to_owned()));
        assert_eq!(ring.next(), Turn::Nobody("host-0:1: timed out".to_owned()));
        assert!(ring.is_settled() && ring.nobody().is_some());
        ring.put(&address(1), State::Ready(1));
        assert_eq!((ring.next(), ring.nobody()), (Turn::To(1), None));
    }

    #[test]
    fn a_name_without_addresses_is_told_once_it_was_looked_up() {
        let mut ring = Ring::<usize>::new();
        assert_eq!(ring.next(), Turn::Wait);
        ring.found_none("no such name".to_owned());
        assert_eq!(ring.next(), Turn::Nobody("no such name".to_owned()));
    }

    #[test]
    fn who_stays_keeps_its_connection() {
        let mut ring = ring(&[State::Ready(0), State::Ready(1)]);
        assert_eq!(ring.update(&[address(1), address(2)]), [address(2)]);
        assert_eq!([(); 2].map(|()| ring.next()), [1, 1].map(Turn::To));
        ring.put(&address(0), State::Ready(0));
        assert_eq!(ring.next(), Turn::To(1), "who has left does not come back by its last news");
    }

    proptest! {
        /// Between two changes, each ready member has had as many turns as any other, give or take one.
        #[test]
        fn turns_are_even(
            changes in prop::collection::vec((0_usize..6, any::<bool>(), 0_usize..20), 1..40),
        ) {
            let mut ring = ring(&std::array::from_fn::<_, 6, _>(State::Ready));
            let mut ready = [true; 6];
            for (number, is_ready, calls) in changes {
                ready[number] = is_ready;
                let state = if is_ready { State::Ready(number) } else { State::Aside(String::new()) };
                ring.put(&address(number), state);
                let mut turns = [0_usize; 6];
                for _ in 0..calls {
                    match ring.next() {
                        Turn::To(number) => turns[number] += 1,
                        turn => prop_assert!(!ready.contains(&true), "{turn:?}"),
                    }
                }
                let counts = || (0..6).filter(|&number| ready[number]).map(|number| turns[number]);
                prop_assert_eq!(counts().sum::<usize>(), if ready.contains(&true) { calls } else { 0 });
                prop_assert!(counts().max().unwrap_or(0) <= counts().min().unwrap_or(0) + 1);
            }
        }
    }
}
