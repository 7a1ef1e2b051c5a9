let () = Peer.run_child Echo.child
