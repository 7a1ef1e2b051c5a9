let () = Peer.run_parent Echo.parent
