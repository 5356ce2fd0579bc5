"""What happens, told to those who watch: from the log in the database to a bounded queue for each of them."""
